"""The horizon of a run: when it ends, and how much of it is done."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cpulm.settings import TrainSettings


@dataclass(frozen=True)
class Horizon:
    """The end of a run: after ``steps`` updates, after ``seconds`` of its own time, or at ``deadline``.

    Exactly one of them is given; ``deadline`` is in seconds since the epoch. A horizon in time reserves
    ``reserve_seconds`` for the last validation and the last checkpoint.
    """

    steps: int | None = None
    seconds: float | None = None
    deadline: float | None = None
    reserve_seconds: float = 0.0

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

    def seconds_left(self, elapsed_seconds: float, now: float) -> float:
        """Return the time to the end, including the reserve; only for a horizon in time."""
        if self.deadline is not None:
            return self.deadline - now
        assert self.seconds is not None
        return self.seconds - elapsed_seconds

    def warmup_steps(self, requested: int) -> int:
        """Return the warm-up steps: as requested, but at most a tenth of a horizon in steps."""
        return requested if self.steps is None else min(requested, self.steps // 10)


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
