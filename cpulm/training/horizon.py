"""The horizon of a run: when it ends, and how much of it is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from cpulm.checkpoints.train_state import TrainState
from cpulm.estimate.requirements import most_steps, total_steps
from cpulm.settings import Settings


@dataclass(frozen=True)
class Horizon:
    """The end of a run: after ``steps`` updates, after ``seconds`` of its own time, or at ``deadline``.

    Exactly one of them is given; ``deadline`` is in seconds since the epoch. A horizon in time reserves
    ``reserve_seconds`` for the last validation and the last checkpoint, and ends each generation after
    ``most_steps`` updates, if they are given and the time is not over before.

    A run of several generations is shared equally among those that are left: this one, which began after
    ``first_step`` updates and ``first_seconds`` of run time, and ``generations_left - 1`` more. If one ends
    early, the next ones have more.
    """

    steps: int | None = None
    seconds: float | None = None
    deadline: float | None = None
    reserve_seconds: float = 0.0
    most_steps: int | None = None
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
        by_steps = step / self.last_step if self.last_step else 0.0
        left = self.seconds_left(elapsed_seconds, now) - self.reserve_seconds
        return min(1.0, max(by_steps, elapsed_seconds / (elapsed_seconds + left))) if left > 0 else 1.0

    def generation_progress(self, step: int, elapsed_seconds: float, now: float) -> float:
        """Return the fraction of the generation that is done, in [0, 1]; arguments as in :meth:`progress`."""
        if (steps := self.generation_steps) is not None:
            return min(1.0, (step - self.first_step) / steps) if steps > 0 else 1.0
        done = elapsed_seconds - self.first_seconds
        share = (done + self.seconds_left(elapsed_seconds, now)) / self.generations_left
        left = share - done - self.reserve_seconds
        by_steps = (step - self.first_step) / self.most_steps if self.most_steps else 0.0
        return min(1.0, max(by_steps, done / (done + left))) if left > 0 else 1.0

    @property
    def last_step(self) -> int | None:
        """The update after which ``most_steps`` ends the run; None if they are not given."""
        return None if self.most_steps is None else self.first_step + self.generations_left * self.most_steps

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


def horizon_of(settings: Settings, train_tokens: int, seconds_gone: float = 0.0) -> Horizon:
    """Return the horizon that the settings request.

    Args:
        train_tokens: in a pass over the training split.
        seconds_gone: seconds of ``max_time`` that the preparation took.
    """
    train, tokens_per_step = settings.train, settings.tokens_per_step
    most = most_steps(train, tokens_per_step, train_tokens)
    if train.max_time is not None:
        return Horizon(seconds=train.max_time - seconds_gone, most_steps=most)
    if train.until is not None:
        return Horizon(deadline=datetime.fromisoformat(train.until).timestamp(), most_steps=most)
    return Horizon(steps=total_steps(train, tokens_per_step, train_tokens))
