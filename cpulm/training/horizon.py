"""The horizon of a run: when it ends, and how much of it is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from cpulm.checkpoints.train_state import TrainState
from cpulm.settings import TrainSettings


@dataclass(frozen=True)
class Horizon:
    """The end of a run: after ``steps`` updates, after ``seconds`` of its own time, or at ``deadline``.

    Exactly one of them is given; ``deadline`` is in seconds since the epoch. A horizon in time reserves
    ``reserve_seconds`` for the last validation and the last checkpoint.

    A run of several generations is shared equally among those that are left: this one, which began after
    ``first_step`` updates and ``first_seconds`` of run time, and ``generations_left - 1`` more. If one ends
    early, the next ones have more.
    """

    steps: int | None = None
    seconds: float | None = None
    deadline: float | None = None
    reserve_seconds: float = 0.0
    first_step: int = 0
    first_seconds: float = 0.0
    generations_left: int = 1

    @property
    def is_time(self) -> bool:
        return self.steps is None

    def progress(self, step: int, elapsed_seconds: float, now: float) -> float:
        """Return the fraction of the run that is done, in [0, 1].

        Args:
            elapsed_seconds: the run's own time.
            now: the wall clock, in seconds since the epoch. After the machine slept, or the clock was
                corrected, a run with a deadline is that much nearer to its end.
        """
        if self.steps is not None:
            return min(1.0, step / self.steps)
        left = self.seconds_left(elapsed_seconds, now) - self.reserve_seconds
        if left <= 0:
            return 1.0
        return elapsed_seconds / (elapsed_seconds + left)

    def generation_progress(self, step: int, elapsed_seconds: float, now: float) -> float:
        """Return the fraction of the generation that is done, in [0, 1]; arguments as in :meth:`progress`."""
        if (steps := self.generation_steps) is not None:
            return min(1.0, (step - self.first_step) / steps) if steps > 0 else 1.0
        done = elapsed_seconds - self.first_seconds
        share = (done + self.seconds_left(elapsed_seconds, now)) / self.generations_left
        left = share - done - self.reserve_seconds
        return done / (done + left) if left > 0 else 1.0

    @property
    def generation_steps(self) -> int | None:
        """The updates of the generation; None if the horizon is a time."""
        return None if self.steps is None else (self.steps - self.first_step) // self.generations_left

    def of_generation(self, state: TrainState, generations: int) -> Horizon:
        """Return the same horizon for the generation of ``state``, in a run of that many."""
        return replace(
            self,
            first_step=state.first_step,
            first_seconds=state.first_seconds,
            generations_left=max(1, generations - state.generation + 1),
        )

    def seconds_left(self, elapsed_seconds: float, now: float) -> float:
        """Return the time to the end, including the reserve; only for a horizon in time."""
        if self.deadline is not None:
            return self.deadline - now
        assert self.seconds is not None
        return self.seconds - elapsed_seconds

    def warmup_steps(self, requested: int) -> int:
        """Return the warm-up steps: as requested, but at most a tenth of a generation with given steps."""
        steps = self.generation_steps
        return requested if steps is None else min(requested, steps // 10)


def horizon_of(train: TrainSettings, steps: int | None, seconds_gone: float = 0.0) -> Horizon:
    """Return the horizon that the settings request.

    Args:
        steps: the horizon in updates; None if it is a time.
        seconds_gone: seconds of ``max_time`` that the preparation took.
    """
    if train.max_time is not None:
        return Horizon(seconds=train.max_time - seconds_gone)
    if train.until is not None:
        return Horizon(deadline=datetime.fromisoformat(train.until).timestamp())
    return Horizon(steps=steps)
