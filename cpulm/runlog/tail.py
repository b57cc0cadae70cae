"""Follows a run log while it grows, or reads it once from start to end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from cpulm import typed_json
from cpulm.errors import DataError
from cpulm.events import Event, MachineSampled, RunStarted, StepDone, line_start
from cpulm.regular_file import open_regular
from cpulm.runlog.find_event import event_in

_KEPT_STEPS = 12_000
"""How many steps of a long run are read; a curve on the screen has a thousand points."""
_STEP_BYTES = 225
_DENSE_BYTES = 2**21
"""This much at the end is read in full: throughput and smoothed loss are those of the last steps."""
_BLOCK_BYTES = 2**20
_STEP, _MACHINE = line_start(StepDone), line_start(MachineSampled)


class _StepSeconds(msgspec.Struct):
    step_seconds: float


_STEP_SECONDS = msgspec.json.Decoder(_StepSeconds)
"""Takes a fifth of the time of decoding the whole event."""


class Tail:
    """Reads what was added to a run log since the last read.

    The file is open only during a read, so that a run on Windows can replace it. After a replacement or a
    truncation it is read from the start again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._at = 0

    def is_replaced(self) -> bool:
        """Whether the file was replaced or truncated since the last read."""
        status = self._status()
        return status is not None and self._identity is not None and self._is_other(status)

    def new_events(self, *, downsample: bool = False) -> Iterator[Event]:
        """Yield the events of the complete lines added since the last read; damaged lines are skipped.

        Args:
            downsample: leave out most steps and machine samples if there are more than a screen can show. The
                next step's ``step_seconds`` then includes the time of the steps left out before it.
        """
        status = self._status()
        if status is None:
            return
        if self._identity is None or self._is_other(status):
            self._identity, self._at = (status.st_dev, status.st_ino), 0
        lines = self._whole_lines()
        if downsample:
            yield from _downsampled(lines, self._path, status.st_size - self._at)
        else:
            yield from _events(lines, self._path)

    def _whole_lines(self) -> Iterator[bytes]:
        while block := self._block():
            for line in block:
                if not line.endswith(b"\n"):
                    return
                self._at += len(line)
                yield line

    def _block(self) -> list[bytes]:
        """Return the next lines; none at the end, or if another file has replaced this one."""
        try:
            with open_regular(self._path) as file:
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


def require_readable(metrics: Path) -> None:
    """Refuse a log that is there, but cannot be read: it would look like that of a run that has not begun.

    Raises:
        DataError: naming the reason.
    """
    try:
        open_regular(metrics).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DataError(f"{metrics} cannot be read: {error.strerror}", "check its permissions") from error


def read_events(metrics: Path) -> Iterator[Event]:
    """Yield the events of a run log, downsampled for a screen; none if it cannot be read."""
    return Tail(metrics).new_events(downsample=True)


def _events(lines: Iterable[bytes], metrics: Path) -> Iterator[Event]:
    for line in lines:
        event = event_in(line, metrics)
        if event is not None:
            yield event


def _downsampled(lines: Iterable[bytes], metrics: Path, size: int) -> Iterator[Event]:
    """Yield events of ``size`` bytes of lines; a step includes the time of the steps left out before it."""
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
        event = event_in(line, metrics)
        if isinstance(event, StepDone) and seconds:
            event, seconds = replace(event, step_seconds=event.step_seconds + seconds), 0.0
        elif isinstance(event, RunStarted):
            seconds = 0.0
        if event is not None:
            yield event


def _step_seconds(line: bytes) -> float:
    try:
        return typed_json.decode(line, _STEP_SECONDS).step_seconds
    except ValueError:
        return 0.0
