"""A run read back from its record: where it stands, what is new in it, or all of it again at any speed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from cpulm.events import Event, RunStarted, StepDone, from_json
from cpulm.ui.snapshot import Snapshot, fold

_KEPT_STEPS = 12_000
"""Of a long run's steps so many are read: the curve has a thousand points, and all would take 15 s."""
_STEP_BYTES = 225
_DENSE_BYTES = 2**21
"""At the end every line is read: pace and smoothed loss are of the last steps."""
_BLOCK_BYTES = 2**20
_STEP, _MACHINE = b'{"event":"step"', b'{"event":"machine"'
_SECONDS = b'"step_seconds":'

_LONGEST_SLEEP_SECONDS = 0.1
_LONGEST_GAP_SECONDS = 60.0
"""A record without a line for longer is that of a machine that slept: nobody wants to see it again."""


class Tail:
    """Reads what was added to a record since the last time; holds the file open only while it reads.

    So a run on Windows can replace it. After a replacement or a truncation reading begins again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._at = 0

    def is_replaced(self) -> bool:
        """Whether what was read so far is no longer what the file begins with."""
        status = self._status()
        return status is not None and self._identity is not None and self._is_other(status)

    def new_events(self, *, thinned: bool = False) -> Iterator[Event]:
        """Events of the whole lines that came since the last time; damaged lines are passed over.

        Args:
            thinned: leave out steps and states of the machine where there are more than a screen can show.
        """
        status = self._status()
        if status is None:
            return
        if self._identity is None or self._is_other(status):
            self._identity, self._at = (status.st_dev, status.st_ino), 0
        lines = self._whole_lines()
        yield from _thinned(lines, status.st_size - self._at) if thinned else _events(lines)

    def _whole_lines(self) -> Iterator[bytes]:
        while block := self._block():
            for line in block:
                if not line.endswith(b"\n"):
                    return
                self._at += len(line)
                yield line

    def _block(self) -> list[bytes]:
        """The next lines; none at the end, and none once another file stands there."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if self._is_other(status) or status.st_size == self._at:
                    return []
                file.seek(self._at)
                return file.readlines(_BLOCK_BYTES)
        except OSError:
            return []

    def _status(self) -> os.stat_result | None:
        try:
            return self._path.stat()
        except OSError:
            return None

    def _is_other(self, status: os.stat_result) -> bool:
        return self._identity != (status.st_dev, status.st_ino) or status.st_size < self._at


def snapshot_of(events: Iterable[Event], begin: Snapshot | None = None) -> Snapshot:
    """What ``events`` amount to."""
    snapshot = Snapshot() if begin is None else begin
    for event in events:
        snapshot = fold(snapshot, event)
    return snapshot


def recorded(path: Path) -> Iterator[Event]:
    """The events in a record, thinned as a screen needs them."""
    return Tail(path).new_events(thinned=True)


class Player:
    """Events at ``speed`` times the pace at which they happened; :meth:`now` is the time they play in."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._played = self._began = 0.0

    def now(self) -> float:
        """Seconds since the epoch, as of the run."""
        return self._played + (time.monotonic() - self._began) * self._speed

    def play(self, events: Iterable[Event], should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Each event when its time has come. Between two parts of a run no time passes."""
        first = True
        for event in events:
            if first or isinstance(event, RunStarted) or event.time - self.now() > _LONGEST_GAP_SECONDS:
                self._played, self._began, first = event.time, time.monotonic(), False
            while (ahead := event.time - self.now()) > 0:
                if should_stop():
                    return
                time.sleep(min(_LONGEST_SLEEP_SECONDS, ahead / self._speed))
            if should_stop():
                return
            yield event


def _events(lines: Iterable[bytes]) -> Iterator[Event]:
    for line in lines:
        event = _event(line)
        if event is not None:
            yield event


def _thinned(lines: Iterable[bytes], size: int) -> Iterator[Event]:
    """The events of ``size`` bytes of lines; a kept step takes the time of those left out before it."""
    sparse = size - _DENSE_BYTES
    stride = max(1, sparse // (_STEP_BYTES * _KEPT_STEPS))
    read, steps, seconds = 0, 0, 0.0
    for line in lines:
        read += len(line)
        if read < sparse and stride > 1:
            if line.startswith(_STEP):
                steps += 1
                if steps % stride:
                    seconds += _step_seconds(line)
                    continue
            elif line.startswith(_MACHINE):
                continue
        event = _event(line)
        if isinstance(event, StepDone) and seconds:
            event, seconds = replace(event, step_seconds=event.step_seconds + seconds), 0.0
        elif isinstance(event, RunStarted):
            seconds = 0.0
        if event is not None:
            yield event


def _step_seconds(line: bytes) -> float:
    """The step's time without parsing the line, which takes ten times as long."""
    at = line.find(_SECONDS) + len(_SECONDS)
    try:
        return float(line[at : line.find(b",", at)])
    except ValueError:
        return 0.0


def _event(line: bytes) -> Event | None:
    try:
        return from_json(line.decode("utf-8", "replace"))
    except (ValueError, TypeError):
        return None
