"""A run's ``metrics.jsonl`` read whole, in one pass: its steps as columns, its other events as they are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cpulm.errors import DataError
from cpulm.events import (
    Event,
    LayerStats,
    MachineSampled,
    RolledBack,
    RunStarted,
    SampleMade,
    StepDone,
    Validated,
    from_json,
)
from cpulm.runlog.columns import Columns, Floats

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

_BLOCK_BYTES = 2**20
_LAST_MOMENT = 32_503_680_000.0
"""The year 3000, where the clocks of some systems end."""
_STATS_HEAD = b'{"event":"layer_stats",'
_MOST_STATISTICS = 500
_MEASURED = (Validated, SampleMade, LayerStats)
_STEPS, _MACHINE = Columns(StepDone), Columns(MachineSampled)


class LogEvent(NamedTuple):
    """An event that is no step, and how many lines of steps stand before it."""

    at: int
    event: Event


class Place(NamedTuple):
    """How far a run is: finished updates, trained tokens, seconds of its own time."""

    step: int
    tokens: int
    seconds: float


@dataclass(frozen=True, eq=False)
class RunLog:
    """What a record holds, in the order in which it was written. What a run went back from is gone.

    ``steps`` and ``machine`` go from the fields of StepDone and MachineSampled to their values, float64, 1-D;
    unknown ones are NaN. ``machine_at`` says for each sample how many lines of steps stand before it.
    ``damaged_lines`` were passed over; a last line without an end is one.
    """

    steps: dict[str, Floats]
    machine: dict[str, Floats]
    machine_at: Integers
    told: tuple[LogEvent, ...]
    damaged_lines: int
    _lines: Floats
    """Step, tokens and seconds of every line of a step, float64 [lines, 3]."""

    @property
    def started(self) -> RunStarted | None:
        """The newest beginning: that of a resumed run has its new horizon."""
        return next((event for _, event in reversed(self.told) if isinstance(event, RunStarted)), None)

    def place(self, at: int) -> Place:
        """How far the run was behind ``at`` lines of steps."""
        step, tokens, seconds = self.places(np.array([at]))[0]
        return Place(int(step), int(tokens), float(seconds))

    def places(self, at: Integers) -> Floats:
        """The same for many at once: steps, tokens and seconds, float64 [len(at), 3]."""
        if not len(self._lines):
            return np.zeros((len(at), 3))
        found: Floats = self._lines[np.clip(at - 1, 0, len(self._lines) - 1)]
        found[at <= 0] = 0.0
        return found


def read_record(metrics: Path) -> RunLog:
    """Read the record of a run.

    Raises:
        DataError: where there is none, it cannot be read or there is no event in it.
    """
    reader = _Reader()
    try:
        with metrics.open("rb") as file:
            while lines := file.readlines(_BLOCK_BYTES):
                reader.read(lines)
    except OSError as error:
        raise DataError(
            f"{metrics} cannot be read: {error.strerror}", "a run's folder holds metrics.jsonl once it trains"
        ) from error
    record = reader.record()
    if not record.told and not len(record.steps["step"]):
        raise DataError(
            f"{metrics} holds no event of a run", "the run has not begun, or its record is damaged"
        )
    return record


class _Reader:
    def __init__(self) -> None:
        self._steps: list[Floats] = []
        self._machine: list[Floats] = []
        self._machine_at: list[int] = []
        self._told: list[LogEvent] = []
        self._stats: list[tuple[int, bytes]] = []
        self._lines = 0
        self._damaged = 0

    def read(self, lines: Sequence[bytes]) -> None:
        """Take up the next lines."""
        is_step = [line.startswith(_STEPS.head) for line in lines]
        if any(is_step):
            self._steps.append(_STEPS.rows(_whole(list(compress(lines, is_step)))))
        machine: list[bytes] = []
        # So many lines of steps stand before each line.
        before = self._lines + np.cumsum(is_step) - is_step
        for index in np.flatnonzero(~np.array(is_step)).tolist():
            line, at = lines[index], int(before[index])
            if line.startswith(_MACHINE.head):
                machine.append(line)
                self._machine_at.append(at)
            elif line.startswith(_STATS_HEAD) and line.endswith(b"\n"):
                self._stats.append((at, line))
            else:
                self._take(line, at)
        if machine:
            self._machine.append(_MACHINE.rows(_whole(machine)))
        self._lines += sum(is_step)

    def _take(self, line: bytes, at: int) -> None:
        try:
            if not line.endswith(b"\n"):
                raise ValueError("half a line")
            self._told.append(LogEvent(at, from_json(line.decode("utf-8", "replace"))))
        except (ValueError, TypeError):
            self._damaged += not _is_json(line)

    def _take_statistics(self) -> None:
        """Take up the statistics of layers: hundreds of numbers in a line, so of very many lines some."""
        stride = -(-len(self._stats) // _MOST_STATISTICS) or 1
        told, self._told = self._told, []
        for at, line in self._stats[::stride]:
            self._take(line, at)
        # They are told of right behind their step, before anything else.
        self._told = sorted(self._told + told, key=lambda one: one.at)

    def record(self) -> RunLog:
        """All that was read."""
        self._take_statistics()
        steps, step_is_sound = _joined(self._steps, _STEPS, ("step", "tokens", "elapsed_seconds"))
        machine, machine_is_sound = _joined(self._machine, _MACHINE, ("process_bytes",))
        damaged = self._damaged + int(np.sum(~step_is_sound)) + int(np.sum(~machine_is_sound))
        lines = _last_known(
            np.stack([steps[name] for name in ("step", "tokens", "elapsed_seconds")], axis=1), step_is_sound
        )
        counts = step_is_sound & ~_gone_back_from(steps["step"], self._told)
        at = np.array(self._machine_at, dtype=np.int64)
        return RunLog(
            steps=_kept(steps, counts),
            machine=_kept(machine, machine_is_sound),
            machine_at=at[machine_is_sound],
            told=_that_count(self._told),
            damaged_lines=damaged,
            _lines=lines,
        )


def _whole(lines: list[bytes]) -> list[bytes]:
    """The lines, the last one as no event where it has no end: it may end in the middle of a number."""
    if not lines[-1].endswith(b"\n"):
        lines[-1] = b"\n"
    return lines


def _is_json(line: bytes) -> bool:
    """Whether the line is whole, though perhaps an event of another version."""
    try:
        json.loads(line)
    except ValueError:
        return not line.strip()
    return line.endswith(b"\n")


def _joined(
    blocks: list[Floats], columns: Columns, needed: tuple[str, ...]
) -> tuple[dict[str, Floats], Booleans]:
    """The columns of all blocks, and which rows have a time and all that is ``needed``."""
    nothing = np.zeros((0, len(columns.names)))
    joined = {
        name: np.concatenate([block[:, index] for block in (blocks or [nothing])])
        for index, name in enumerate(columns.names)
    }
    blocks.clear()
    sound = (joined["time"] >= 0) & (joined["time"] < _LAST_MOMENT)  # False for NaN
    for name in needed:
        sound &= joined[name] >= 0
    return joined, sound


def _kept(columns: dict[str, Floats], which: Booleans) -> dict[str, Floats]:
    return columns if which.all() else {name: column[which] for name, column in columns.items()}


def _last_known(rows: Floats, known: Booleans) -> Floats:
    """Every row that is not known as the last one before that is; zeros where there is none."""
    if known.all():
        return rows
    latest = np.maximum.accumulate(np.where(known, np.arange(len(rows)), -1))
    filled: Floats = np.where(latest[:, None] >= 0, rows[latest], 0.0)
    return filled


def _gone_back_from(steps: Floats, told: Sequence[LogEvent]) -> Booleans:
    """Which lines of steps do not count: a run went back behind them, or was resumed before them."""
    gone = np.zeros(len(steps), dtype=bool)
    for at, event in told:
        back_to = _back_to(event)
        if back_to is not None:
            gone[:at] |= steps[:at] > back_to
    return gone


def _that_count(told: Sequence[LogEvent]) -> tuple[LogEvent, ...]:
    """Without what was measured of steps that were gone back from."""
    kept: list[LogEvent] = []
    newest = math.inf
    for one in reversed(told):
        if not isinstance(one.event, _MEASURED) or one.event.step <= newest:
            kept.append(one)
        back_to = _back_to(one.event)
        if back_to is not None:
            newest = min(newest, back_to)
    return tuple(reversed(kept))


def _back_to(event: Event) -> int | None:
    """The last step that counts of those told of before the event; None where all of them do."""
    if isinstance(event, RolledBack):
        return event.to_step
    return event.step if isinstance(event, RunStarted) else None
