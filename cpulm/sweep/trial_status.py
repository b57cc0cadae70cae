"""Reads the status of the trials of a sweep, from their run logs as they grow."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from cpulm.events import COMPLETE, EndReason, Event, RolledBack, RunFinished, RunStarted, StepDone, Validated
from cpulm.run_dir import RunDir
from cpulm.runlog.tail import Tail
from cpulm.sweep.plan import Trial

WAITING, RUNNING, PAUSED, FINISHED, LOST, FAILED, LEFT_OUT = (
    "waiting",
    "running",
    "paused",
    "finished",
    "diverged",
    "failed",
    "stopped early",
)


@dataclass
class TrialLog:
    """What the run log of one trial says so far.

    ``scores`` are bits per byte by the step of their validation, ``losses`` nats per token.
    """

    run: RunDir
    scores: dict[int, float] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    step: int = 0
    tokens: int = 0
    elapsed_seconds: float = 0.0
    reason: EndReason | None = None
    _tail: Tail = field(init=False)

    def __post_init__(self) -> None:
        self._tail = Tail(self.run.metrics)

    def follow(self) -> None:
        """Read what was written since the last time."""
        if self._tail.is_replaced():
            self._forget()  # a resumed run has replaced its log by the first part of it
        for event in self._tail.new_events(downsample=True):
            self._note(event)

    def best_until(self, step: int | None) -> float:
        """Return the best bits per byte among validations up to ``step``; infinite if there is none."""
        scores = (score for at, score in self.scores.items() if step is None or at <= step)
        return min((score for score in scores if math.isfinite(score)), default=math.inf)

    def has_ended(self) -> bool:
        """Whether it has reached its end, and has not been continued."""
        return self.reason in COMPLETE

    def has_diverged(self) -> bool:
        return self.reason == "diverged"

    def has_reached(self, step: int | None) -> bool:
        """Whether it is validated at ``step``, or has ended; None stands for its end."""
        return self.has_ended() or (step is not None and any(at >= step for at in self.scores))

    def _forget(self) -> None:
        self.scores.clear()
        self.losses.clear()
        self.step, self.tokens, self.elapsed_seconds, self.reason = 0, 0, 0.0, None

    def _note(self, event: Event) -> None:
        if isinstance(event, (StepDone, RunFinished)):
            self.step, self.tokens = event.step, event.tokens
            self.elapsed_seconds = event.elapsed_seconds
        if isinstance(event, (StepDone, RunStarted)):
            self.reason = None
        elif isinstance(event, RunFinished):
            self.reason = event.reason
        elif isinstance(event, Validated):
            # Of a tokenizer that loses text the score is not comparable, so it never counts as better.
            self.scores[event.step] = math.inf if event.text_lost else event.bits_per_byte
            self.losses[event.step] = event.loss
        elif isinstance(event, RolledBack):
            for step in [step for step in self.scores if step > event.to_step]:
                del self.scores[step], self.losses[step]


@dataclass(frozen=True)
class TrialStatus:
    """The status of a trial.

    ``state`` is one of this module's; ``bits_per_byte`` is the best so far, ``rung`` how many rungs it has
    passed; ``said`` is the last message of a failed process.
    """

    name: str
    run: Path
    state: str
    step: int
    steps: int | None
    tokens: int
    seconds: float
    bits_per_byte: float | None
    loss: float | None
    rung: int
    said: str = ""


def trial_status(trial: Trial, progress: TrialLog, state: str, rung: int, said: str = "") -> TrialStatus:
    """Return the status of a trial in figures."""
    best = progress.best_until(None)
    at = next((step for step, score in progress.scores.items() if score == best), None)
    return TrialStatus(
        name=trial.name,
        run=progress.run.path,
        state=state,
        step=progress.step,
        steps=trial.steps,
        tokens=progress.tokens,
        seconds=progress.elapsed_seconds,
        bits_per_byte=best if math.isfinite(best) else None,
        loss=None if at is None else progress.losses[at],
        rung=rung,
        said=said,
    )
