"""All settings of a run, with their defaults, meanings and limits: a section a module.

:mod:`cpulm.settings.resolve_settings` takes their values from presets, files, the environment and flags.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import Field, model_validator

from cpulm.settings.data_settings import DataSettings, TokenizerKind
from cpulm.settings.distributed_settings import DistributedSettings
from cpulm.settings.lora_settings import LoraSettings
from cpulm.settings.model_settings import ModelSettings
from cpulm.settings.record_settings import CheckpointSettings, EvalSettings, LogSettings, SampleSettings
from cpulm.settings.runtime_settings import Device, RuntimeSettings
from cpulm.settings.setting_types import LARGEST, Section
from cpulm.settings.train_settings import HORIZONS, TrainSettings
from cpulm.yaml_file import to_yaml

__all__ = [
    "HORIZONS",
    "CheckpointSettings",
    "DataSettings",
    "Device",
    "DistributedSettings",
    "EvalSettings",
    "LogSettings",
    "LoraSettings",
    "ModelSettings",
    "RuntimeSettings",
    "SampleSettings",
    "Settings",
    "TokenizerKind",
    "TrainSettings",
    "changed",
    "settings_yaml",
]

_S = TypeVar("_S", bound=Section)


class Settings(Section):
    """All settings of one run."""

    preset: str = Field("", max_length=255)
    """The preset that these settings are based on; a label without effect."""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    lora: LoraSettings = LoraSettings()
    eval: EvalSettings = EvalSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    sample: SampleSettings = SampleSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    distributed: DistributedSettings = DistributedSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _one_horizon(self) -> Settings:
        given = [name for name in HORIZONS if getattr(self.train, name) is not None]
        if len(given) > 1:
            raise ValueError(f"train has {len(given)} horizons ({', '.join(given)}); keep one")
        return self

    @model_validator(mode="after")
    def _adapters_fit(self) -> Settings:
        if not self.lora.rank:
            return self
        if self.train.init_from is None:
            raise ValueError(
                f"lora.rank = {self.lora.rank} needs a model to begin with: give --init-from MODEL"
            )
        there = {part.name for layer in self.model.linear_layers for part in layer.parts}
        missing = [name for name in self.lora.projections if name not in there]
        if missing:
            raise ValueError(f"lora.projections has {missing[0]}, and a block of this model has none")
        return self

    @model_validator(mode="after")
    def _rounds_of_updates(self) -> Settings:
        if self.distributed.mode == "diloco" and not self.train.outer_steps:
            raise ValueError(
                "distributed.mode diloco exchanges weights after train.outer_steps updates, and these are 0: "
                "set train.outer_steps, such as 12"
            )
        return self

    @model_validator(mode="after")
    def _countable_step(self) -> Settings:
        if self.tokens_per_step > LARGEST:
            raise ValueError(
                f"one update is {self.tokens_per_step:,} tokens (train.micro_batch_size x "
                f"train.grad_accum_steps x model.block_size); at most {LARGEST:,} can be counted"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens trained by one optimizer update."""
        return self.train.micro_batch_size * self.train.grad_accum_steps * self.model.block_size


def changed(section: _S, **values: Any) -> _S:
    """Return a copy of ``section`` with other ``values``, validated again.

    Raises:
        pydantic.ValidationError: if a value, or the combination, is invalid.
    """
    return type(section).model_validate({**section.model_dump(), **values})


def settings_yaml(settings: Settings) -> str:
    """Convert the settings to YAML from which ``--config`` reads the same settings."""
    return to_yaml(settings.model_dump(mode="json"))
