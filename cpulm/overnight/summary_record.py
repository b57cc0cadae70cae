"""Reads from a run log what the summary of a night needs, in one pass that keeps no steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from cpulm.estimate.overfitting import risen_since
from cpulm.events import (
    Event,
    Notice,
    RolledBack,
    RunFinished,
    RunStarted,
    SampleMade,
    StepDone,
    Validated,
)
from cpulm.runlog.tail import read_events

_SLACK_SECONDS = 1.0
"""The first events after a restart may have a time a moment before the supervisor's."""


@dataclass
class NightLog:
    """What a run log says of a night. ``notes`` are times and texts of notable events."""

    started: RunStarted | None = None
    first_step: StepDone | None = None
    step: StepDone | None = None
    validations: list[Validated] = field(default_factory=list)
    sample: SampleMade | None = None
    finished: RunFinished | None = None
    notes: list[tuple[float, str]] = field(default_factory=list)

    @property
    def best(self) -> Validated | None:
        """The validation with the lowest loss."""
        finite = [v for v in self.validations if math.isfinite(v.loss) and math.isfinite(v.bits_per_byte)]
        return min(finite, key=lambda v: v.loss, default=None)

    @property
    def risen(self) -> bool:
        """Whether the losses of the newest generation have risen since their minimum."""
        newest = self.validations[-1].generation if self.validations else 0
        losses = [v.loss for v in self.validations if v.generation == newest and math.isfinite(v.loss)]
        return risen_since(losses) is not None


def read_night_log(metrics: Path, since: float | None = None) -> NightLog:
    """Read the run log; an empty result if it cannot be read.

    Args:
        since: when the night began; notes and steps before it are left out. None for the whole run.
    """
    night = NightLog()
    for event in read_events(metrics):
        _note(night, event, since or 0.0)
    return night


def _note(night: NightLog, event: Event, since: float) -> None:
    if isinstance(event, StepDone):
        night.step = event
        if night.first_step is None and event.time >= since:
            night.first_step = event
    elif isinstance(event, RunStarted):
        night.started, night.finished = event, None
    elif isinstance(event, Validated):
        night.validations.append(event)
    elif isinstance(event, SampleMade):
        night.sample = event
    elif isinstance(event, RunFinished):
        night.finished = event
    elif isinstance(event, RolledBack):
        _roll_back(night, event, since)
    elif isinstance(event, Notice) and _is_worth_a_line(event, night, since):
        night.notes.append((event.time, event.message))


def _roll_back(night: NightLog, event: RolledBack, since: float) -> None:
    """Forget undone steps; the time that they took still counts."""
    night.validations = [v for v in night.validations if v.step <= event.to_step]
    if night.step is not None:
        night.step = replace(night.step, step=event.to_step)
    if event.time >= since:
        text = f"rolled back from step {event.step:,} to step {event.to_step:,}: {event.reason}"
        night.notes.append((event.time, text))


def _is_worth_a_line(notice: Notice, night: NightLog, since: float) -> bool:
    """Whether it belongs to the night, and is a warning or came later than the notices of the start."""
    if notice.time < since - _SLACK_SECONDS:
        return False
    if notice.level == "warning":
        return True
    return night.started is not None and notice.time - night.started.time > _SLACK_SECONDS
