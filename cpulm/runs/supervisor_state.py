"""The state of a supervised run: ``overnight.json`` in its folder.

The supervisor writes it; the summary and ``cpulm stop`` read it. This module is part of a process that runs
all night beside the training: it loads neither torch nor rich.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cpulm.atomic import write_text
from cpulm.events import COMPLETE, CheckpointSaved, StepDone
from cpulm.regular_file import read_regular
from cpulm.run_dir import RunDir
from cpulm.runlog.find_event import last_event, run_end
from cpulm.system import process
from cpulm.typed_json import from_record, parse_json

NightState = Literal["training", "waiting", "interrupted", "finished", "stopped", "failed", "given_up"]

NIGHT_STATES: dict[NightState, str] = {
    "training": "The run is being trained.",
    "waiting": "The supervisor waits before it starts the run again.",
    "interrupted": "Interrupted: the computer or the supervisor was shut down.",
    "finished": "Finished.",
    "stopped": "Stopped on purpose.",
    "failed": "Ended: another start would fail in the same way.",
    "given_up": "Given up: several starts in a row made no progress. See overnight.log.",
}
"""All states of a supervised run, each in a sentence."""

ENDED: tuple[NightState, ...] = ("finished", "stopped", "failed", "given_up")
"""States after which nothing starts the run again, not even a reboot."""

_MOST_ATTEMPTS, _MOST_BYTES = 200, 1 << 20


@dataclass
class Attempt:
    """One process of the night, from its start to its end. Times are in seconds since the epoch.

    ``code`` is the exit code as Python has it, negative for a signal; None while the process runs, and if it
    vanished together with the supervisor. ``from_step`` is the step of the newest checkpoint at its start,
    ``step`` the last one in the log at its end: the steps between that and the next attempt's ``from_step``
    were trained twice. ``error`` is the error it ended with, ``pause_seconds`` the pause after it.
    """

    began: float
    from_step: int | None = None
    ended: float | None = None
    code: int | None = None
    step: int | None = None
    error: str = ""
    pause_seconds: float | None = None


@dataclass
class SupervisorState:
    """What the supervisor of a run knows.

    ``folder`` is the working folder. ``arguments`` are given to each restart until a checkpoint holds them,
    such as a new horizon. ``pid_started`` distinguishes the supervisor's process from later ones with the
    same number. ``tries`` counts the starts that brought no newer checkpoint. ``attempts_dropped`` is how
    many attempts were left out so that the file stays small.
    """

    run: str
    folder: str
    arguments: list[str]
    since: float
    state: NightState = "training"
    host: str = ""
    pid: int = 0
    pid_started: str = ""
    child_pid: int | None = None
    tries: int = 0
    waiting_until: float | None = None
    attempts: list[Attempt] = field(default_factory=list)
    attempts_dropped: int = 0

    def set_supervisor(self) -> None:
        """Make this process the supervisor."""
        self.host, self.pid = process.host_name(), os.getpid()
        self.pid_started = process.start_token(self.pid) or ""

    def watcher(self) -> tuple[str, int, str]:
        """Host, number and start of its supervisor's process: unique among all processes."""
        return self.host, self.pid, self.pid_started

    def set_back(self, seconds: float) -> None:
        """Move all times back: the clock was set back, and later events have times of the new clock."""
        self.since -= seconds
        for attempt in self.attempts:
            attempt.began -= seconds
            if attempt.ended is not None:
                attempt.ended -= seconds

    def is_watched(self) -> bool:
        """Whether its supervisor runs on this machine; False for another machine, which cannot be asked."""
        return self.host == process.host_name() and process.is_running(self.pid, self.pid_started)

    def is_active(self) -> bool:
        """Whether it has a supervisor and has not ended; a supervisor runs a moment longer than its run."""
        return self.state not in ENDED and self.is_watched()


def read(run: RunDir) -> SupervisorState | None:
    """The state in the run's folder; None if there is none or the file is damaged."""
    try:
        return from_record(SupervisorState, parse_json(read_regular(run.overnight, _MOST_BYTES)))
    except (OSError, ValueError):
        return None


def write(run: RunDir, night: SupervisorState) -> None:
    """Write the state, whole or not at all.

    Raises:
        ResourceError: the disk is full.
        OSError: the folder is gone or cannot be written.
    """
    excess = len(night.attempts) - _MOST_ATTEMPTS
    if excess > 0:
        # The first attempt is kept: it tells when and from which step the night began.
        del night.attempts[1 : 1 + excess]
        night.attempts_dropped += excess
    write_text(run.overnight, json.dumps(dataclasses.asdict(night), indent=1) + "\n")


def has_begun(run: RunDir, since: float) -> bool:
    """Whether the run has trained a step or saved a checkpoint after ``since``."""
    last = last_event(run.metrics, StepDone, CheckpointSaved)
    return last is not None and last.time >= since


def is_complete(run: RunDir, since: float) -> bool:
    """Whether the run has reached its end after ``since``, whatever happened to its process later."""
    end = run_end(run.metrics)
    return end is not None and end.time >= since and end.reason in COMPLETE


def checkpoint_step(run: RunDir) -> int | None:
    """Return the step of the run's newest checkpoint, from its log; None if the log names none."""
    saved = last_event(run.metrics, CheckpointSaved)
    return None if saved is None else saved.step


def new_state(run: RunDir, arguments: list[str]) -> SupervisorState:
    """The state of an overnight run that begins now, in the current folder."""
    return SupervisorState(run=str(run.path), folder=str(Path.cwd()), arguments=arguments, since=time.time())
