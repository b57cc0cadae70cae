"""A trained model as the exporters need it: weights, tokenizer, and what was measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.load_model import load_model
from cpulm.data.records.chat import knows_chat
from cpulm.data.tokenizer import Tokenizer
from cpulm.model.transformer import Transformer


@dataclass(frozen=True)
class TrainedModel:
    """What one export is made of.

    Attributes:
        name: of the run, for people.
        checkpoint: the settings and measurements, without weights.
    """

    name: str
    model: Transformer
    tokenizer: Tokenizer
    checkpoint: Checkpoint

    @property
    def end_of_text(self) -> str:
        """The token that ends a document."""
        return str(self.tokenizer.inner.id_to_token(self.tokenizer.eot_id))

    @property
    def talks(self) -> bool:
        """Whether it was trained on conversations."""
        return knows_chat(self.tokenizer)


def read_trained_model(run: Path, warn: Callable[[str], None]) -> TrainedModel:
    """Load a trained model; arguments and errors as for ``load_model``."""
    model, tokenizer, checkpoint = load_model(run, warn=warn)
    return TrainedModel(model_name(run), model, tokenizer, checkpoint)


def model_name(path: Path) -> str:
    """The name of a model for people, valid Unicode: that of its folder, or of its GGUF file."""
    is_gguf = path.suffix == ".gguf"
    name = path.stem if is_gguf else (path if path.is_dir() else path.parent).resolve().name
    return os.fsencode(name).decode("utf-8", "replace")
