"""Truncates a run log at the checkpoint from which its run is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from cpulm import typed_json
from cpulm.atomic import replacing
from cpulm.events import CheckpointSaved, RunFinished, line_start
from cpulm.regular_file import open_regular


class _Line(msgspec.Struct):
    """The needed fields of a line; they also fit events of a later version, which are kept."""

    event: str
    step: Any = None
    saves: Any = None


_LINE = msgspec.json.Decoder(_Line)


def truncate_after(metrics: Path, step: int, saves: int | None = None) -> None:
    """Remove everything after a checkpoint, so that the log of a resumed run contains no step twice.

    All lines after the one of checkpoint number ``saves`` at ``step`` are removed. If there is no such line,
    or ``saves`` is None, the events of later steps are removed, together with the events between them that
    have no step. RunFinished events and damaged lines are removed as well. The file is replaced atomically; a
    missing file stays missing.

    Raises:
        ResourceError: if the disk is full.
    """
    if not metrics.is_file():
        return
    end = None if saves is None else _end_of_checkpoint(metrics, step, saves)
    with open_regular(metrics) as old, replacing(metrics) as new:
        later, read = False, 0
        for line in old:
            if end is not None and read >= end:
                break
            read += len(line)
            found = _parse(line)
            if found is None:
                continue
            if isinstance(found.step, int):
                later = found.step > step
            if not later and found.event != RunFinished.kind:
                new.write(line)


def _end_of_checkpoint(metrics: Path, step: int, saves: int) -> int | None:
    """Return the position in the file, in bytes, after the line of the checkpoint."""
    end, read, start = None, 0, line_start(CheckpointSaved)
    with open_regular(metrics) as file:
        for line in file:
            read += len(line)
            found = _parse(line) if line.startswith(start) else None
            if found is not None and (found.step, found.saves) == (step, saves):
                end = read
    return end


def _parse(line: bytes) -> _Line | None:
    """Parse a complete line; None if it is damaged."""
    try:
        return typed_json.decode(line, _LINE) if line.endswith(b"\n") else None
    except ValueError:
        return None
