"""The state of a run: an immutable snapshot, and the reducer that applies an event.

Dashboard and plain lines both read it, so each figure has one formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from cpulm.events import (
    CheckpointSaved,
    Event,
    GenerationStarted,
    MachineSampled,
    Notice,
    Progress,
    RolledBack,
    RunFinished,
    RunStarted,
    SampleMade,
    StepDone,
    Validated,
)
from cpulm.ui.curve import Pace, ThinnedCurve
from cpulm.ui.words import describe_generation, describe_rollback

_SMOOTHING = 0.98
_KEPT_NOTICES = 20
_KEPT_STAGES = 8
_MOST_OVERHEAD = 3.0


class StageProgress(NamedTuple):
    """A stage outside the training steps, from its first to its newest :class:`Progress`."""

    first: Progress
    last: Progress

    @property
    def seconds(self) -> float:
        return max(0.0, self.last.time - self.first.time)

    @property
    def per_second(self) -> float | None:
        """Units per second; None until known."""
        done = self.last.done - self.first.done
        return done / self.seconds if self.seconds > 0 and done > 0 else None

    @property
    def fraction(self) -> float | None:
        """The completed fraction, 0 to 1; None if the total is unknown."""
        if not self.last.total or self.last.total <= 0:
            return None
        return min(1.0, max(0.0, self.last.done / self.last.total))

    @property
    def seconds_left(self) -> float | None:
        if self.last.total is None or self.per_second is None:
            return None
        return max(0.0, self.last.total - self.last.done) / self.per_second


class Smoothed(NamedTuple):
    """Exponential moving average of the losses, corrected for the bias of its start (Kingma and Ba, 2014)."""

    weighted: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> Smoothed:
        if not math.isfinite(value):
            return self
        return Smoothed(
            _SMOOTHING * self.weighted + (1 - _SMOOTHING) * value,
            _SMOOTHING * self.weight + (1 - _SMOOTHING),
        )

    @property
    def value(self) -> float | None:
        return self.weighted / self.weight if self.weight else None


class Snapshot(NamedTuple):
    """The current state of a run. The newest event of every kind is kept; curves are downsampled.

    ``way_out`` is the screen's hint on Ctrl-C if that does not stop the run.
    """

    time: float = 0.0
    started: RunStarted | None = None
    step: StepDone | None = None
    session_step: StepDone | None = None
    session_step_seconds: float = 0.0
    validated: Validated | None = None
    best: Validated | None = None
    checkpoint: CheckpointSaved | None = None
    sample: SampleMade | None = None
    machine: MachineSampled | None = None
    finished: RunFinished | None = None
    stage: StageProgress | None = None
    stages: tuple[StageProgress, ...] = ()
    notices: tuple[Notice, ...] = ()
    generation: int = 1
    smoothed: Smoothed = Smoothed()
    losses: ThinnedCurve = ThinnedCurve()
    validations: ThinnedCurve = ThinnedCurve()
    pace: Pace = Pace()
    way_out: str = ""

    @property
    def step_number(self) -> int:
        """Finished optimizer updates."""
        if self.step is not None:
            return self.step.step
        return self.started.step if self.started is not None else 0

    @property
    def progress(self) -> float:
        """The completed fraction of the horizon, 0 to 1."""
        known = self.step.progress if self.step is not None else 0.0
        return min(1.0, max(0.0, known)) if math.isfinite(known) else 0.0

    @property
    def flops_per_second(self) -> float | None:
        tokens = self.pace.tokens_per_second
        return None if self.started is None or tokens is None else self.started.flops_per_token * tokens

    @property
    def seconds_left(self) -> float | None:
        """Estimated wall-clock time to the horizon; None until a step has been timed."""
        if self.started is None or self.step is None:
            return None
        left, started, pace = math.inf, self.started, self.pace.steps_per_second
        if started.max_time_seconds is not None:
            left = max(0.0, started.max_time_seconds - self.step.elapsed_seconds)
        last = started.most_steps if started.steps is None else started.steps
        if last is not None and pace:
            left = min(left, max(0, last - self.step.step) / pace * self._overhead)
        return left if math.isfinite(left) else None

    @property
    def _overhead(self) -> float:
        """Wall-clock seconds per second of training steps: validations and checkpoints take time too."""
        if self.step is None or self.session_step is None or self.session_step_seconds <= 0:
            return 1.0
        wall = self.step.time - self.session_step.time
        return min(_MOST_OVERHEAD, max(1.0, wall / self.session_step_seconds))


def fold(snapshot: Snapshot, event: Event) -> Snapshot:
    """The snapshot after ``event``; unknown events change only the time."""
    change = _CHANGES.get(type(event), _after_unknown)
    return change(snapshot, event)


def _after_step(snapshot: Snapshot, event: StepDone) -> Snapshot:
    first = snapshot.session_step is None
    if not first and snapshot.step is not None:
        tokens = event.tokens - snapshot.step.tokens
    else:
        tokens = snapshot.started.tokens_per_step if snapshot.started is not None else 0
    return snapshot._replace(
        time=event.time,
        step=event,
        session_step=event if first else snapshot.session_step,
        session_step_seconds=0.0 if first else snapshot.session_step_seconds + event.step_seconds,
        stage=None,
        smoothed=snapshot.smoothed.add(event.loss),
        losses=snapshot.losses.add(event.step, event.loss),
        pace=snapshot.pace.add(event.step_seconds, tokens),
    )


def _after_progress(snapshot: Snapshot, event: Progress) -> Snapshot:
    same = snapshot.stage is not None and snapshot.stage.first.stage == event.stage
    first = snapshot.stage.first if same and snapshot.stage is not None else event
    stage = StageProgress(first, event)
    if not event.finished:
        return snapshot._replace(time=event.time, stage=stage)
    return snapshot._replace(time=event.time, stage=None, stages=(*snapshot.stages, stage)[-_KEPT_STAGES:])


def _after_validation(snapshot: Snapshot, event: Validated) -> Snapshot:
    validations = snapshot.validations.add(event.step, event.loss)
    best = event if event.best else snapshot.best
    return snapshot._replace(time=event.time, validated=event, best=best, validations=validations)


def _after_start(snapshot: Snapshot, event: RunStarted) -> Snapshot:
    """A resumed run keeps its curves; speed and overhead are of this session only."""
    return snapshot._replace(
        time=event.time,
        started=event,
        generation=event.generation,
        finished=None,
        stage=None,
        session_step=None,
        session_step_seconds=0.0,
        pace=Pace(),
    )


def _after_generation(snapshot: Snapshot, event: GenerationStarted) -> Snapshot:
    """The losses of new weights are averaged alone."""
    notice = Notice(level="info", message=describe_generation(event), time=event.time)
    return _after_notice(snapshot, notice)._replace(generation=event.generation, smoothed=Smoothed())


def _after_rollback(snapshot: Snapshot, event: RolledBack) -> Snapshot:
    """Drop the steps after the checkpoint; the best validation remains that of the best model."""
    step = snapshot.step
    if step is not None:
        per_step = step.tokens // max(step.step, 1)
        step = replace(step, step=event.to_step, tokens=per_step * event.to_step)
    notice = Notice(level="warning", message=describe_rollback(event), time=event.time)
    return _after_notice(snapshot, notice)._replace(
        step=step,
        losses=snapshot.losses.up_to(event.to_step),
        validations=snapshot.validations.up_to(event.to_step),
    )


def _after_notice(snapshot: Snapshot, event: Notice) -> Snapshot:
    return snapshot._replace(time=event.time, notices=(*snapshot.notices, event)[-_KEPT_NOTICES:])


def _after_unknown(snapshot: Snapshot, event: Event) -> Snapshot:
    return snapshot._replace(time=event.time)


_CHANGES: dict[type[Event], Callable[[Snapshot, Any], Snapshot]] = {
    StepDone: _after_step,
    Progress: _after_progress,
    Validated: _after_validation,
    RunStarted: _after_start,
    GenerationStarted: _after_generation,
    RolledBack: _after_rollback,
    Notice: _after_notice,
    MachineSampled: lambda snapshot, event: snapshot._replace(time=event.time, machine=event),
    CheckpointSaved: lambda snapshot, event: snapshot._replace(time=event.time, checkpoint=event),
    SampleMade: lambda snapshot, event: snapshot._replace(time=event.time, sample=event),
    RunFinished: lambda snapshot, event: snapshot._replace(time=event.time, finished=event, stage=None),
}
