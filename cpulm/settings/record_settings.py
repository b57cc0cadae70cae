"""The settings of what a run records: validations, checkpoints, samples, its log."""

from __future__ import annotations

from pydantic import Field

from cpulm.settings.setting_types import LARGEST, LARGEST_FIGURE, LARGEST_VOCABULARY, WIDEST, Seconds, Section


class EvalSettings(Section):
    """Validation during the run; one more always ends it."""

    every: int = Field(250, ge=1, le=LARGEST)
    """The most updates between validations. A text that is seen several times is validated more often at
    first, if that takes little time."""
    batches: int | None = Field(None, ge=1, le=LARGEST)
    """Micro-batches per validation, of windows spread over the split; unset: the whole split."""


class CheckpointSettings(Section):
    """When to save checkpoints. The end of a run and a requested stop always save one."""

    every: Seconds = 600.0
    """Training time between checkpoints (seconds, or `10min`)."""
    every_steps: int | None = Field(None, ge=1, le=LARGEST)
    """Updates between checkpoints; unset: by time alone."""
    keep: int = Field(2, ge=0, le=LARGEST)
    """Numbered checkpoints to keep beside `latest.pt` and `best.pt`."""


class SampleSettings(Section):
    """Text that the model writes at each validation."""

    prompt: str = ""
    """The prompt of the sample; empty: the start of a document."""
    max_new_tokens: int = Field(100, ge=0, le=WIDEST)
    """Length of the sample; 0 makes none."""
    temperature: float = Field(0.8, ge=0, le=LARGEST_FIGURE)
    """0 takes the most likely token; 1 keeps the model's probabilities."""
    top_k: int | None = Field(50, ge=0, le=LARGEST_VOCABULARY)
    """Sample from this many of the most likely tokens; 0 or unset: from all."""


class LogSettings(Section):
    """What is recorded in addition to losses, validations and the machine's state."""

    layer_stats_every: int = Field(50, ge=0, le=LARGEST)
    """Updates between measurements of every matrix: its norm, its gradient's norm before clipping, and the
    norm of the update relative to its norm; 0 measures nothing."""
    tensorboard: bool = False
    """Write TensorBoard event files too; needs the extra `tensorboard`."""
    report: bool = True
    """Write `report.html` whenever the run ends."""
