"""Builds the timeline of a run: starts and ends, problems and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cpulm.analysis.report import TimelineEntry
from cpulm.events import END_REASONS, Event, GenerationStarted, Notice, RolledBack, RunFinished, RunStarted
from cpulm.exit_codes import exit_in_words
from cpulm.runlog.run_log import Place, RunLog
from cpulm.runs.supervisor_state import SupervisorState
from cpulm.units import format_bits_per_byte, format_duration

_SLACK_SECONDS = 1.0
"""Notices this soon after the start describe the machine and are not part of the timeline."""
_LONGEST_SILENCE_SECONDS = 120.0
"""A longer time between the last step and a restart is mentioned."""


def build_timeline(log: RunLog, night: SupervisorState | None) -> tuple[TimelineEntry, ...]:
    """Return the timeline; repeated entries are merged into one with a count."""
    entries = list(_entries_of_log(log))
    if night is not None:
        entries += _entries_of_night(log, night)
    entries.sort(key=lambda entry: entry.time)
    return tuple(_merge_repeated(entries))


def _entries_of_log(log: RunLog) -> Iterator[TimelineEntry]:
    best = min(log.validations, key=lambda validated: validated.loss, default=None)
    started_at: float | None = None
    for at, event in log.events:
        place = log.place(at)
        if isinstance(event, RunStarted):
            yield _start(event, place, _last_step_time(log, event.step))
            started_at = event.time
        elif isinstance(event, GenerationStarted):
            text = f"generation {event.generation} of {event.generations} begins with new weights"
            yield _entry("generation", text, event, place)
        elif isinstance(event, RolledBack):
            text = f"rolled back from step {event.step:,} to step {event.to_step:,}: {event.reason}"
            yield _entry("rolled_back", text, event, place)
        elif isinstance(event, Notice):
            warning = event.level == "warning"
            if warning or (started_at is not None and event.time - started_at > _SLACK_SECONDS):
                yield _entry("warning" if warning else "notice", event.message, event, place)
        elif isinstance(event, RunFinished):
            yield _entry("ended", END_REASONS[event.reason], event, place)
        elif best is not None and event is best:
            bits = format_bits_per_byte(best.bits_per_byte, best.text_lost)
            yield _entry("best", f"best validation loss: {best.loss:.4f}, {bits}", event, place)


def _start(event: RunStarted, place: Place, last_step_time: float | None) -> TimelineEntry:
    place = Place(event.step, event.step * event.tokens_per_step, place.seconds)
    if not event.step:
        return _entry("started", "started", event, place)
    text = f"resumed at step {event.step:,}"
    if last_step_time is not None and event.time - last_step_time > _LONGEST_SILENCE_SECONDS:
        text += f", after {format_duration(event.time - last_step_time)}"
    return _entry("restarted", text, event, place)


def _last_step_time(log: RunLog, step: int) -> float | None:
    """When the step was completed; None if unknown."""
    at = int(np.searchsorted(log.steps["step"], step, side="right")) - 1
    return float(log.steps["time"][at]) if at >= 0 else None


def _entries_of_night(log: RunLog, night: SupervisorState) -> Iterator[TimelineEntry]:
    """Yield an entry for each process of an overnight run that ended with an error."""
    for attempt in night.attempts:
        if attempt.ended is None or not attempt.code:
            continue
        said = f": {attempt.error}" if attempt.error else ""
        step = attempt.step or 0
        at = int(np.searchsorted(log.steps["time"], attempt.ended, side="right"))
        seconds = float(log.steps["elapsed_seconds"][at - 1]) if at else 0.0
        yield TimelineEntry(step, seconds, "lost", f"{exit_in_words(attempt.code)}{said}", attempt.ended)


def _entry(kind: str, text: str, event: Event, place: Place) -> TimelineEntry:
    return TimelineEntry(place.step, place.seconds, kind, " ".join(text.split()), event.time)


def _merge_repeated(entries: list[TimelineEntry]) -> list[TimelineEntry]:
    """Merge equal entries of one kind into one, at the first place, with a count."""
    groups: dict[tuple[str, str], list[TimelineEntry]] = {}
    for entry in entries:
        groups.setdefault((entry.kind, entry.text), []).append(entry)
    return [
        group[0]
        if len(group) == 1
        else replace(group[0], text=f"{text} ({len(group)} times, the last at step {group[-1].step:,})")
        for (_, text), group in groups.items()
    ]
