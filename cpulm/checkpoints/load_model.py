"""Loads a trained model from its checkpoint, to generate from it or to evaluate it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from cpulm import run_dir
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.weights_alone import weights_alone
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError
from cpulm.model.transformer import Transformer
from cpulm.pretrained.read_pretrained import read_pretrained
from cpulm.pretrained.recognize import is_pretrained
from cpulm.settings import Settings


def load_model(
    path: Path, device: torch.device | str = "cpu", *, warn: Callable[[str], None]
) -> tuple[Transformer, Tokenizer, Checkpoint]:
    """Load a trained model for inference; documents are masked as in training.

    Args:
        path: a checkpoint, or a run's folder: then its ``best.pt`` is loaded or, without one, its newest
            undamaged checkpoint; or a model of another program, as ``is_pretrained`` knows them.
        device: the device that the model will run on.
        warn: called for each damaged checkpoint that was skipped.

    Returns:
        The model, its tokenizer, and the checkpoint without its weights and optimizer states.

    Raises:
        DataError: if there is no checkpoint, it is damaged, or its weights are not finite; or a model of
            another program cannot be read.
    """
    checkpoint, _, tokenizer = best_checkpoint(path, warn)
    model = model_of(checkpoint, tokenizer)
    checkpoint.model_state, checkpoint.average_state, checkpoint.optimizer_states = {}, {}, []
    return model.to(device).eval().requires_grad_(False), tokenizer, checkpoint


def best_checkpoint(path: Path, warn: Callable[[str], None]) -> tuple[Checkpoint, Path, Tokenizer]:
    """Read the checkpoint that :func:`load_model` takes for ``path``.

    Returns:
        The checkpoint, its file, and its tokenizer.

    Raises:
        DataError: as :func:`load_model`.
    """
    if is_pretrained(path):
        return _pretrained(path, warn)
    checkpoint, used, damaged = checkpoints.load_newest(_checkpoints_of(path) if path.is_dir() else [path])
    for line in damaged:
        warn(f"{line}; using {used.name} instead")
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json)
    checkpoints.require_fit(checkpoint)
    if checkpoint.settings.lora.rank:
        checkpoint = weights_alone(checkpoint)
    if tokenizer.vocab_size != checkpoint.vocab_size:
        raise DataError(
            f"the parts of {used} do not fit each other: the tokenizer has {tokenizer.vocab_size:,} tokens, "
            f"the model {checkpoint.vocab_size:,}",
            "use another checkpoint of the run",
        )
    if not all(bool(value.isfinite().all()) for value in checkpoint.weights.values()):
        raise DataError(
            f"the weights in {used} are not finite: its training diverged",
            "use an earlier checkpoint of the run",
        )
    return checkpoint, used, tokenizer


def _pretrained(path: Path, warn: Callable[[str], None]) -> tuple[Checkpoint, Path, Tokenizer]:
    """A model of another program, as a checkpoint that no run has trained."""
    found = read_pretrained(path)
    for note in found.notes:
        warn(f"{path}: {note}")
    tokenizer = found.tokenizer
    settings = Settings(model=found.settings)
    checkpoint = Checkpoint(settings, tokenizer.to_json(), tokenizer.vocab_size, True, found.weights)
    return checkpoint, path, tokenizer


def model_of(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Transformer:
    """Build the model of ``checkpoint`` with its weights; documents are masked as in training."""
    model = Transformer(checkpoint.settings.model, checkpoint.vocab_size)
    checkpoints.restore(checkpoint, model)
    model.mask_documents(tokenizer.eot_id if checkpoint.settings.train.masks_documents else None)
    return model


def _checkpoints_of(folder: Path) -> list[Path]:
    run = run_dir.find(folder)
    found = run.checkpoints()
    if not found:
        raise DataError(f"{folder} has no checkpoint yet", "train it for longer: cpulm resume")
    return sorted(found, key=lambda path: path != run.best)
