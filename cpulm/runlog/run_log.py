"""Reads a complete run log in one pass: steps as columns, other events as objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from cpulm import typed_json
from cpulm.errors import DataError
from cpulm.events import (
    Event,
    GenerationStarted,
    LayerStats,
    MachineSampled,
    RolledBack,
    RunFinished,
    RunStarted,
    SampleMade,
    StepDone,
    Validated,
    line_start,
)
from cpulm.regular_file import open_regular
from cpulm.runlog.columns import Columns, Floats
from cpulm.runlog.find_event import event_in
from cpulm.typed_json import LATEST

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

_BLOCK_BYTES = 2**20
_STATS_START = line_start(LayerStats)
_MOST_STATISTICS = 500
_MEASURED = (Validated, SampleMade, LayerStats)
_ANY = msgspec.json.Decoder()
_STEPS, _MACHINE = Columns(StepDone), Columns(MachineSampled)


class LogEvent(NamedTuple):
    """An event that is not a step; ``at`` is the number of step lines before it."""

    at: int
    event: Event


class Place(NamedTuple):
    """A point in a run: finished updates, trained tokens, seconds of run time."""

    step: int
    tokens: int
    seconds: float


@dataclass(frozen=True, eq=False)
class RunLog:
    """The contents of a run log in order, without the steps that a rollback or a resumption has undone.

    ``steps`` and ``machine`` map the fields of StepDone and MachineSampled to their values, float64, 1-D;
    unknown values are NaN. ``machine_at`` is the number of step lines before each machine sample. ``events``
    are all other events. ``damaged_lines`` counts skipped lines, including an incomplete last line.
    """

    steps: dict[str, Floats]
    machine: dict[str, Floats]
    machine_at: Integers
    events: tuple[LogEvent, ...]
    damaged_lines: int
    _lines: Floats
    """Step, tokens and seconds of every step line, float64 [lines, 3]."""

    @property
    def started(self) -> RunStarted | None:
        """The newest RunStarted; after a resumption it has the new horizon."""
        return next((event for _, event in reversed(self.events) if isinstance(event, RunStarted)), None)

    @property
    def finished(self) -> RunFinished | None:
        """The newest RunFinished; None if the run has never ended."""
        return next((event for _, event in reversed(self.events) if isinstance(event, RunFinished)), None)

    @property
    def validations(self) -> list[Validated]:
        """The validations with a finite loss."""
        return [
            event for _, event in self.events if isinstance(event, Validated) and math.isfinite(event.loss)
        ]

    def newest_generation(self) -> RunLog:
        """The log of the newest generation alone, whose tokens are counted from its start."""
        borders = [one for one in self.events if isinstance(one.event, GenerationStarted)]
        if not borders:
            return self
        at, border = borders[-1].at, borders[-1].event
        assert isinstance(border, GenerationStarted)
        steps = _select_rows(self.steps, self.steps["step"] > border.step)
        events = tuple(one for one in self.events if one.at > at or isinstance(one.event, RunStarted))
        return replace(
            self,
            steps={**steps, "tokens": steps["tokens"] - self.place(at).tokens},
            machine=_select_rows(self.machine, self.machine_at > at),
            machine_at=self.machine_at[self.machine_at > at],
            events=events,
        )

    def place(self, at: int) -> Place:
        """Return the point that the run had reached after ``at`` step lines."""
        step, tokens, seconds = self.places(np.array([at]))[0]
        return Place(int(step), int(tokens), float(seconds))

    def places(self, at: Integers) -> Floats:
        """Return steps, tokens and seconds for many points at once, float64 [len(at), 3]."""
        if not len(self._lines):
            return np.zeros((len(at), 3))
        found: Floats = self._lines[np.clip(at - 1, 0, len(self._lines) - 1)]
        found[at <= 0] = 0.0
        return found


def read_run_log(metrics: Path) -> RunLog:
    """Read the log of a run.

    Raises:
        DataError: if it does not exist, cannot be read, or contains no event.
    """
    reader = _Reader(metrics)
    try:
        with open_regular(metrics) as file:
            while lines := file.readlines(_BLOCK_BYTES):
                reader.read(lines)
    except OSError as error:
        raise DataError(
            f"{metrics} cannot be read: {error.strerror}", "a run's folder holds metrics.jsonl once it trains"
        ) from error
    log = reader.run_log()
    if not log.events and not len(log.steps["step"]):
        raise DataError(f"{metrics} holds no event of a run", "the run has not begun, or its log is damaged")
    return log


class _Reader:
    def __init__(self, metrics: Path) -> None:
        self._metrics = metrics
        self._steps: list[Floats] = []
        self._machine: list[Floats] = []
        self._machine_at: list[int] = []
        self._events: list[LogEvent] = []
        self._stats: list[tuple[int, bytes]] = []
        self._lines = 0
        self._damaged = 0

    def read(self, lines: Sequence[bytes]) -> None:
        """Add the next lines."""
        is_step = [line.startswith(_STEPS.start) for line in lines]
        if any(is_step):
            self._steps.append(_STEPS.rows(_drop_incomplete(list(compress(lines, is_step)))))
        machine: list[bytes] = []
        # The number of step lines before each line.
        before = self._lines + np.cumsum(is_step) - is_step
        for index in np.flatnonzero(~np.array(is_step)).tolist():
            line, at = lines[index], int(before[index])
            if line.startswith(_MACHINE.start):
                machine.append(line)
                self._machine_at.append(at)
            elif line.startswith(_STATS_START) and line.endswith(b"\n"):
                self._stats.append((at, line))
            else:
                self._add_event(line, at)
        if machine:
            self._machine.append(_MACHINE.rows(_drop_incomplete(machine)))
        self._lines += sum(is_step)

    def _add_event(self, line: bytes, at: int) -> None:
        event = event_in(line, self._metrics)
        if event is not None:
            self._events.append(LogEvent(at, event))
        else:
            self._damaged += not _is_from_another_version(line)

    def _add_layer_stats(self) -> None:
        """Add the layer statistics. A line has hundreds of numbers, so only every n-th of many is parsed."""
        stride = -(-len(self._stats) // _MOST_STATISTICS) or 1
        others, self._events = self._events, []
        for at, line in self._stats[::stride]:
            self._add_event(line, at)
        # Stable sort: layer statistics directly follow their step, before any other event.
        self._events = sorted(self._events + others, key=lambda one: one.at)

    def run_log(self) -> RunLog:
        """Return the log of all lines added so far."""
        self._add_layer_stats()
        steps, step_is_sound = _join(self._steps, _STEPS, ("step", "tokens", "elapsed_seconds"))
        machine, machine_is_sound = _join(self._machine, _MACHINE, ("process_bytes",))
        damaged = self._damaged + int(np.sum(~step_is_sound)) + int(np.sum(~machine_is_sound))
        lines = _fill_forward(
            np.stack([steps[name] for name in ("step", "tokens", "elapsed_seconds")], axis=1), step_is_sound
        )
        counts = step_is_sound & ~_undone_steps(steps["step"], self._events)
        at = np.array(self._machine_at, dtype=np.int64)
        return RunLog(
            steps=_select_rows(steps, counts),
            machine=_select_rows(machine, machine_is_sound),
            machine_at=at[machine_is_sound],
            events=_without_undone(self._events),
            damaged_lines=damaged,
            _lines=lines,
        )


def _drop_incomplete(lines: list[bytes]) -> list[bytes]:
    """Replace an incomplete last line by an empty one: it may end in the middle of a number."""
    if not lines[-1].endswith(b"\n"):
        lines[-1] = b"\n"
    return lines


def _is_from_another_version(line: bytes) -> bool:
    """Whether a line that is not a known event is complete JSON or empty, so not damaged."""
    try:
        typed_json.decode(line, _ANY)
    except ValueError:
        return not line.strip()
    return line.endswith(b"\n")


def _join(
    blocks: list[Floats], columns: Columns, needed: tuple[str, ...]
) -> tuple[dict[str, Floats], Booleans]:
    """Join the blocks; return their columns, and which rows have a time and all ``needed`` fields."""
    nothing = np.zeros((0, len(columns.names)))
    joined = {
        name: np.concatenate([block[:, index] for block in (blocks or [nothing])])
        for index, name in enumerate(columns.names)
    }
    blocks.clear()
    sound = (joined["time"] >= 0) & (joined["time"] < LATEST)  # False for NaN
    for name in needed:
        sound &= joined[name] >= 0
    return joined, sound


def _select_rows(columns: dict[str, Floats], which: Booleans) -> dict[str, Floats]:
    return columns if which.all() else {name: column[which] for name, column in columns.items()}


def _fill_forward(rows: Floats, known: Booleans) -> Floats:
    """Replace each unknown row by the last known row before it, or by zeros if there is none."""
    if known.all():
        return rows
    latest = np.maximum.accumulate(np.where(known, np.arange(len(rows)), -1))
    filled: Floats = np.where(latest[:, None] >= 0, rows[latest], 0.0)
    return filled


def _undone_steps(steps: Floats, events: Sequence[LogEvent]) -> Booleans:
    """Return which step lines were undone: the run was rolled back or resumed at an earlier step."""
    gone = np.zeros(len(steps), dtype=bool)
    for at, event in events:
        back_to = _restored_step(event)
        if back_to is not None:
            gone[:at] |= steps[:at] > back_to
    return gone


def _without_undone(events: Sequence[LogEvent]) -> tuple[LogEvent, ...]:
    """Leave out the measurements at undone steps."""
    kept: list[LogEvent] = []
    newest = math.inf
    for one in reversed(events):
        if not isinstance(one.event, _MEASURED) or one.event.step <= newest:
            kept.append(one)
        back_to = _restored_step(one.event)
        if back_to is not None:
            newest = min(newest, back_to)
    return tuple(reversed(kept))


def _restored_step(event: Event) -> int | None:
    """Return the step that the event restored; None if it restored none."""
    if isinstance(event, RolledBack):
        return event.to_step
    return event.step if isinstance(event, RunStarted) else None
