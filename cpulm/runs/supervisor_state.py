"""The record of a night: ``overnight.json`` in a run's folder, and what else is read to keep it.

The supervisor writes it, the summary and ``cpulm stop`` read it. This module is part of a process
that lives all night beside the training: it loads neither torch nor anything that draws.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpulm.atomic import write_text
from cpulm.events import COMPLETE, is_sound
from cpulm.run_dir import RunDir
from cpulm.system import process
from cpulm.typed_json import from_record

TRAINING, WAITING, INTERRUPTED = "training", "waiting", "interrupted"
FINISHED, STOPPED, FAILED, GIVEN_UP = "finished", "stopped", "failed", "given_up"
ENDED = (FINISHED, STOPPED, FAILED, GIVEN_UP)
"""States after which nothing starts again by itself, also not after a reboot."""

_MOST_PARTS = 200
_BLOCK_BYTES = 64 * 2**10


@dataclass
class Attempt:
    """One process of the night, from its start to its end. Times are seconds since the epoch.

    ``code`` is the exit code as Python has it, negative for a signal; None while the process lives and
    where it vanished together with the supervisor. ``from_step`` is the newest checkpoint it began with
    and ``step`` the last one in the record at its end: what lies between that and the next part's
    ``from_step`` was trained twice. ``said`` is the error it ended with, ``pause_seconds`` followed it.
    """

    began: float
    from_step: int | None = None
    ended: float | None = None
    code: int | None = None
    step: int | None = None
    said: str = ""
    pause_seconds: float | None = None


@dataclass
class SupervisorState:
    """What the supervisor of a run knows.

    ``folder`` is the working directory and ``arguments`` what a restart is given until a checkpoint
    holds it, such as a new horizon. ``pid_started`` tells the supervisor's process apart from later
    ones with its number. ``tries`` counts the starts that brought no newer checkpoint. ``before`` is how
    many parts were forgotten so that the file stays small.
    """

    run: str
    folder: str
    arguments: list[str]
    since: float
    state: str = TRAINING
    host: str = ""
    pid: int = 0
    pid_started: str = ""
    child_pid: int | None = None
    tries: int = 0
    waiting_until: float | None = None
    parts: list[Attempt] = field(default_factory=list)
    before: int = 0

    def claim(self) -> None:
        """Note that this process is the supervisor."""
        self.host, self.pid = process.host(), os.getpid()
        self.pid_started = process.started(self.pid) or ""

    def watcher(self) -> tuple[str, int, str]:
        """What tells its supervisor's process apart from every other one."""
        return self.host, self.pid, self.pid_started

    def set_back(self, seconds: float) -> None:
        """Move all times back: the clock was set back, and later events have times of the new clock."""
        self.since -= seconds
        for part in self.parts:
            part.began -= seconds
            if part.ended is not None:
                part.ended -= seconds

    def is_watched(self) -> bool:
        """Whether its supervisor lives on this machine; another machine's cannot be asked: False."""
        return self.host == process.host() and process.is_running(self.pid, self.pid_started)

    def goes_on(self) -> bool:
        """Whether it is watched and not over; a supervisor that has noted the end lives a moment longer."""
        return self.state not in ENDED and self.is_watched()


def log_path(run: RunDir) -> Path:
    """Where the supervisor and its processes write."""
    return run.path / "overnight.log"


def read(run: RunDir) -> SupervisorState | None:
    """The run's night; None where there was none or its record is damaged."""
    try:
        return from_record(SupervisorState, json.loads(run.overnight.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def write(run: RunDir, night: SupervisorState) -> None:
    """Write the record, whole or not at all.

    Raises:
        ResourceError: where the disk is full.
        OSError: where the folder is gone or cannot be written.
    """
    excess = len(night.parts) - _MOST_PARTS
    if excess > 0:
        # The first part stays: it tells when and where the night began.
        del night.parts[1 : 1 + excess]
        night.before += excess
    write_text(run.overnight, json.dumps(dataclasses.asdict(night), indent=1) + "\n")


def last_event(metrics: Path, *kinds: str, since: float = 0.0) -> dict[str, Any] | None:
    """The newest event of one of ``kinds`` in the record of a run, not older than ``since``.

    Read from the end, so the length of the record does not matter. Damaged lines are passed over.
    """
    marks = [f'"{kind}"'.encode() for kind in kinds]
    for line in _lines_from_the_end(metrics):
        if not any(mark in line for mark in marks):
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if is_sound(event) and event["event"] in kinds:
            return dict(event) if event["time"] >= since else None
    return None


def is_complete(run: RunDir, since: float) -> bool:
    """Whether the run has come to its end after ``since``, whatever befell its process thereafter."""
    last = last_event(run.metrics, "run_started", "step", "run_finished", since=since)
    return last is not None and last["event"] == "run_finished" and last.get("reason") in COMPLETE


def checkpoint_step(run: RunDir) -> int | None:
    """The step of the run's newest checkpoint, as its record tells; None where it tells of none."""
    event = last_event(run.metrics, "checkpoint")
    return event["step"] if event and isinstance(event.get("step"), int) else None


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    """Lines of a file, the last one first; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            at, rest = file.seek(0, os.SEEK_END), b""
            while at > 0:
                size = min(_BLOCK_BYTES, at)
                at = file.seek(at - size)
                first, *lines = (file.read(size) + rest).split(b"\n")
                yield from reversed(lines)
                rest = first
            yield rest
    except OSError:
        return


def new_state(run: RunDir, arguments: list[str]) -> SupervisorState:
    """A night that begins now, in the current folder."""
    return SupervisorState(run=str(run.path), folder=str(Path.cwd()), arguments=arguments, since=time.time())
