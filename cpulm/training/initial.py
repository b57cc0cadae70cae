"""A run that begins with the weights of a trained model: its weights, its tokenizer and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cpulm.cache_dir import expand_home
from cpulm.checkpoints.load_model import best_checkpoint
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import KINDS, Tokenizer
from cpulm.errors import DataError, SettingsError
from cpulm.events import Listener, Notice
from cpulm.model.counts import count, count_adapters
from cpulm.pretrained.hf_folder import TOKENIZER
from cpulm.pretrained.pretrained_model import FittedWeights
from cpulm.settings import ModelSettings, Settings
from cpulm.settings.lora_settings import LoraSettings
from cpulm.typed_json import shown
from cpulm.units import format_count

_FREE = ("block_size", "dropout", "activation_checkpointing")
"""Settings of the model that a run may change."""
_LONGEST_BLOCK = 1024
"""Of the block size that a run takes from the model: longer ones need much memory, and must be asked for."""
_RATE_OF_RUN = 1 / 3
"""The learning rates relative to those of the run that trained the model."""
_RATE = 1e-4
"""AdamW's learning rate for a model of another program."""
_RATE_OF_ADAPTERS = 2e-4
"""The same for its adapters, as QLoRA's authors chose it (https://arxiv.org/abs/2305.14314, table 9)."""


@dataclass(frozen=True)
class InitialModel:
    """A trained model to begin with.

    Attributes:
        path: its file or folder.
        model: its settings.
        trained: the settings of the run that trained it; None if it is of another program.
    """

    path: Path
    model: ModelSettings
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor]
    trained: Settings | None

    def fitted(self, settings: ModelSettings, vocab_size: int) -> Mapping[str, Tensor]:
        """The weights for a run with these settings and so many tokens."""
        return FittedWeights(self.weights, vocab_size, settings.block_size)

    def described(self, tokenizer: Tokenizer, lora: LoraSettings) -> str:
        """What a run with this tokenizer begins with and what it trains, for people."""
        size = format_count(count(self.model, self.tokenizer.vocab_size).total)
        begins = f"begins with the {size} weights of {self.path}"
        if lora.rank:
            adapters = format_count(count_adapters(self.model, lora))
            return f"{begins}, which stay as they are: it trains {adapters} in adapters of rank {lora.rank}"
        names = ", ".join(self.lacks(tokenizer))
        return f"{begins}; new in its vocabulary: {names}" if names else begins

    def lacks(self, tokenizer: Tokenizer) -> list[str]:
        """The tokens of ``tokenizer``, that of a run, which are not in the model's vocabulary."""
        ids = range(self.tokenizer.vocab_size, tokenizer.vocab_size)
        return [str(tokenizer.inner.id_to_token(number)) for number in ids]


def read_initial(path: str, emit: Listener) -> InitialModel:
    """Read the model that ``train.init_from`` names.

    Raises:
        DataError: if there is none, or it cannot be read.
    """

    def warn(message: str) -> None:
        emit(Notice(level="warning", message=message))

    checkpoint, used, tokenizer = best_checkpoint(expand_home(path), warn)
    trained = checkpoint.settings if checkpoint.step else None
    return InitialModel(used, checkpoint.settings.model, tokenizer, checkpoint.weights, trained)


def initial_settings(initial: InitialModel, *, adapters: bool = False) -> dict[str, Any]:
    """The settings that a run takes from the model, by dotted key; those of the user override them.

    Args:
        adapters: whether the run trains adapters: with AdamW.
    """
    model = initial.model.model_dump()
    values: dict[str, Any] = {f"model.{name}": value for name, value in model.items()}
    values["model.block_size"] = min(initial.model.block_size, _LONGEST_BLOCK)
    values |= {"data.tokenizer": _tokenizer_setting(initial), "data.vocab_size": None}
    if initial.trained is None:
        return values | {"train.optimizer": "adamw", "train.lr": _RATE_OF_ADAPTERS if adapters else _RATE}
    before = initial.trained.train
    values["data.vocab_size"] = initial.trained.data.vocab_size
    values["train.optimizer"] = "adamw" if adapters else before.optimizer
    for name in ("lr", "muon_lr"):
        values[f"train.{name}"] = float(f"{_RATE_OF_RUN * getattr(before, name):.2g}")
    return values


def require_fit(initial: InitialModel, settings: Settings) -> None:
    """Compare the settings of a run with those of the model that it begins with.

    Raises:
        SettingsError: names the first that differs, and both values.
    """
    if settings.train.generations > 1:
        raise SettingsError(
            "train.init_from begins with trained weights, and every generation with new ones", "leave one out"
        )
    if settings.lora.rank and settings.train.optimizer != "adamw":
        raise SettingsError(
            f"train.optimizer = {settings.train.optimizer!r}: adapters are trained by adamw",
            "leave train.optimizer out",
        )
    for name, value in initial.model.model_dump().items():
        wanted = getattr(settings.model, name)
        if name not in _FREE and wanted != value:
            raise _differs(initial, f"model.{name}", wanted, value)
    if initial.model.position == "learned" and settings.model.block_size > initial.model.block_size:
        raise _differs(initial, "model.block_size", settings.model.block_size, initial.model.block_size)
    tokenizer = _tokenizer_setting(initial)
    if settings.data.tokenizer != tokenizer:
        raise _differs(initial, "data.tokenizer", settings.data.tokenizer, tokenizer)


def require_tokenizer(initial: InitialModel, tokens: TokenFolder, settings: Settings) -> None:
    """Compare the tokens with the model's vocabulary, which may lack special tokens.

    Raises:
        DataError: if they are of another tokenizer.
        SettingsError: if it lacks some, and the run trains adapters, beside which the embeddings stay.
    """
    there = tokens.tokenizer
    special = [str(there.inner.id_to_token(number)) for number in sorted(there.special_ids)]
    if there.to_json() != initial.tokenizer.with_special_tokens(special).to_json():
        raise DataError(
            f"the tokens in {tokens.path} are of another tokenizer than that of {initial.path}",
            "give the text that they were made from",
        )
    if settings.lora.rank and (new := initial.lacks(there)):
        raise SettingsError(
            f"lora.rank = {settings.lora.rank}: adapters cannot learn {', '.join(new)}, which are new in the "
            "vocabulary",
            "train all weights: leave lora.rank out",
        )


def _differs(initial: InitialModel, key: str, wanted: Any, value: Any) -> SettingsError:
    return SettingsError(
        f"{key} = {shown(wanted)} does not fit the model of train.init_from: it has {shown(value)}",
        f"leave {key} out: a run takes it from {initial.path}",
    )


def _tokenizer_setting(initial: InitialModel) -> str:
    """What ``data.tokenizer`` is in a run that begins with the model."""
    if initial.trained is not None:
        return initial.trained.data.tokenizer
    file = initial.path / TOKENIZER
    if file.is_file():
        return str(file.absolute())
    return initial.tokenizer.kind if initial.tokenizer.kind in KINDS else str(initial.path.absolute())
