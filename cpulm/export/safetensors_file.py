"""The bare weights of any model as one safetensors file, by the names of cpulm's own parameters."""

from __future__ import annotations

import json
from pathlib import Path

from cpulm.export.trained_model import TrainedModel
from cpulm.pretrained.named_weights import own_weights
from cpulm.pretrained.save_tensors import save_tensors


def write_safetensors(trained: TrainedModel, path: Path) -> None:
    """Write the weights, float32, with the model's settings and the tokenizer as metadata.

    The file is written at once, not completely or not at all: give a temporary ``path``.
    """
    metadata = {
        "format": "pt",
        "cpulm.model": json.dumps(trained.model.settings.model_dump(mode="json")),
        "cpulm.tokenizer.json": trained.tokenizer.to_json(),
    }
    save_tensors(own_weights(trained.model), path, metadata)
