"""A checkpoint for use: the weights that were the better ones, with their adapters merged."""

from __future__ import annotations

from dataclasses import replace

from cpulm.checkpoints.checkpoint import Checkpoint, no_fit
from cpulm.model.lora import merged
from cpulm.settings import changed
from cpulm.settings.lora_settings import LoraSettings

_MOST_SHOWN = 200


def weights_alone(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the weights to use, and nothing to continue training with: adapters are merged.

    Raises:
        DataError: if its adapters do not fit its weights.
    """
    weights, settings = dict(checkpoint.weights), checkpoint.settings
    if settings.lora.rank:
        try:
            weights = merged(weights, settings.model, settings.lora)
        except (LookupError, RuntimeError) as error:
            raise no_fit(f"adapters: {str(error)[:_MOST_SHOWN]}") from error
        settings = changed(settings, lora=LoraSettings())
    return replace(
        checkpoint,
        settings=settings,
        model_state=weights,
        average_state={},
        optimizer_states=[],
        random_state={},
    )
