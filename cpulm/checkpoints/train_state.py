"""The training state: what the next update depends on beside the weights and the optimizers' states."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cpulm.settings.setting_types import LARGEST
from cpulm.typed_json import from_record

SPIKE_UPDATES = 5
"""High losses in a row that make a spike: an unusual document causes one, divergence causes many."""
_MEAN_DECAY = 0.98
"""Decay of the exponential mean of the loss, which averages over about fifty updates."""


@dataclass
class LossTracker:
    """Detects spikes of the training loss. It is part of the training state, so that resuming is exact.

    Attributes:
        mean_loss: exponential mean over the updates that were not a spike; None before the first one.
        high_updates: updates in a row, up to now, whose loss is far above the mean or not finite.
    """

    mean_loss: float | None = None
    high_updates: int = 0

    def update(self, loss: float, spike_nats: float | None) -> str | None:
        """Add the loss of one update, which must be finite.

        Returns:
            The problem in words if :data:`SPIKE_UPDATES` losses in a row are more than ``spike_nats`` above
            the mean; else None.
        """
        mean = self.mean_loss
        if mean is not None and spike_nats is not None and loss > mean + spike_nats:
            self.high_updates += 1
            if self.high_updates < SPIKE_UPDATES:
                return None
            above = f"{spike_nats:g} nats above its mean of {mean:.3f}"
            return f"the loss stayed {above}; the last one is {loss:.3f}"
        self.high_updates = 0
        self.mean_loss = loss if mean is None else _MEAN_DECAY * mean + (1 - _MEAN_DECAY) * loss
        return None

    def note_non_finite(self) -> None:
        """Count an update whose loss or gradient norm was not finite."""
        self.high_updates += 1


@dataclass
class TrainState:
    """The training state of a run.

    Attributes:
        step: finished updates.
        tokens: trained tokens.
        elapsed_seconds: run time, without interruptions.
        best_loss: the lowest validation loss, in nats per token; ``best_step`` and ``best_bits_per_byte``
            belong to it.
        generation: of the run's trainings, one after the other, counted from 1.
        first_step: updates of the run before this generation began.
        first_seconds: run time before this generation began.
        generation_best_loss: the lowest validation loss of this generation, after ``generation_best_step``.
        stale_validations: validations since the best one of this generation.
        validated_step: the step of the last validation.
        average_is_better: whether the averaged weights had the lower loss at the last validation.
        skipped: the loader's indices of the batches that are skipped, ascending.
        rollbacks: rollbacks since the best validation.
        saves: checkpoints written.
        teacher: the digest of the teacher's weights in the run's folder; empty without a teacher.
        losses: detects spikes of the training loss.
    """

    step: int = 0
    tokens: int = 0
    elapsed_seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    best_bits_per_byte: float | None = None
    generation: int = 1
    first_step: int = 0
    first_seconds: float = 0.0
    generation_best_loss: float | None = None
    generation_best_step: int | None = None
    stale_validations: int = 0
    validated_step: int | None = None
    average_is_better: bool = False
    skipped: list[int] = field(default_factory=list)
    rollbacks: int = 0
    saves: int = 0
    teacher: str = ""
    losses: LossTracker = field(default_factory=LossTracker)

    @property
    def generation_steps(self) -> int:
        """Finished updates of this generation."""
        return self.step - self.first_step

    def next_generation(self, teacher: str, elapsed_seconds: float) -> TrainState:
        """The state at the start of the next generation: what is counted is that of the run."""
        return TrainState(
            step=self.step,
            tokens=self.tokens,
            elapsed_seconds=elapsed_seconds,
            best_loss=self.best_loss,
            best_step=self.best_step,
            best_bits_per_byte=self.best_bits_per_byte,
            generation=self.generation + 1,
            first_step=self.step,
            first_seconds=elapsed_seconds,
            saves=self.saves,
            teacher=teacher,
        )

    def keep_best(self, other: TrainState) -> None:
        """Take over the best validations of ``other``, a state of the same run."""
        self.best_loss, self.best_step = other.best_loss, other.best_step
        self.best_bits_per_byte = other.best_bits_per_byte
        if other.generation == self.generation:
            self.generation_best_loss = other.generation_best_loss
            self.generation_best_step = other.generation_best_step


_LOSSES_KEY = "course"
"""The name of ``losses`` in checkpoint files of format 1."""


def to_stored(state: TrainState) -> dict[str, Any]:
    """Convert ``state`` to the plain values in a checkpoint file."""
    values = asdict(state)
    values[_LOSSES_KEY] = values.pop("losses")
    return values


def from_stored(values: dict[str, Any]) -> TrainState:
    """Convert the result of :func:`to_stored` back to the state.

    Raises:
        ValueError: if a value is missing or has the wrong type.
    """
    state = from_record(TrainState, {**values, "losses": values.get(_LOSSES_KEY, {})})
    for name in ("step", "tokens", "elapsed_seconds", "stale_validations", "rollbacks", "saves"):
        if getattr(state, name) < 0:
            raise ValueError(f"{name} cannot be {getattr(state, name)}")
    if state.generation < 1 or not 0 <= state.first_step <= state.step or state.first_seconds < 0:
        raise ValueError("a generation cannot begin after the run's newest step")
    if "generation_best_loss" not in values:  # from a version without generations
        state.generation_best_loss, state.generation_best_step = state.best_loss, state.best_step
    if state.step > LARGEST or state.losses.high_updates < 0:
        raise ValueError("step or high_updates is beyond every run")
    if any(batch < 0 for batch in state.skipped) or sorted(set(state.skipped)) != state.skipped:
        raise ValueError("skipped is not ascending")
    return state
