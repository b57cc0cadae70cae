"""Watches an overnight run: starts it, starts it again after a crash, and decides when to stop trying.

It is a process of its own, ``cpulm supervise``. It loads neither torch nor anything that draws: it needs
little memory beside the training, and what kills the training (memory, a bug in a library) leaves it alive.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cpulm.command import cpulm_command, last_error, log_environment, read_tail
from cpulm.errors import CpulmError
from cpulm.exit_codes import exit_in_words
from cpulm.overnight import summary as nights
from cpulm.overnight.log import Log
from cpulm.overnight.report_page import is_outdated, write_report
from cpulm.run_dir import RunDir
from cpulm.runs import supervisor_state
from cpulm.runs.supervisor_state import (
    ENDED,
    FAILED,
    FINISHED,
    GIVEN_UP,
    INTERRUPTED,
    STOPPED,
    TRAINING,
    WAITING,
    Attempt,
    SupervisorState,
)
from cpulm.units import format_duration

PAUSES = (5.0, 15.0, 45.0, 135.0, 405.0, 900.0)
"""Seconds before the next start, by the number of starts without progress; the last one repeats."""

TRIES = 8
"""Starts without a newer checkpoint after which nothing is tried any more."""

NO_ROOM_RUNGS = 3
"""Disk and memory come back when something else ends, not within seconds: longer pauses at once."""

SUMMARY_SECONDS = 600.0
"""How old the summary gets while all goes well: someone may look in the middle of the night."""

_CLOCK_SLACK_SECONDS = 0.5
"""A clock that is adjusted gently stays within this from one look to the next."""


@dataclass(frozen=True)
class Decision:
    """What follows the end of a process: another start after a pause, or a state that ends the night."""

    state: str
    tries: int
    pause_seconds: float | None = None


def decide(
    code: int | None,
    *,
    progressed: bool,
    tries: int,
    stop_asked: bool = False,
    shut_down: bool = False,
    pauses: Sequence[float] = PAUSES,
) -> Decision:
    """What to do after a process has ended.

    Args:
        code: its exit code, negative for a signal, None where it vanished with the computer.
        progressed: whether the newest checkpoint is newer than at its start.
        tries: starts before it that brought no newer checkpoint.
        stop_asked: whether the user wants the run stopped.
        shut_down: whether the supervisor itself was asked to end, as when the computer shuts down.
    """
    if code == 0:
        return Decision(FINISHED, 0)
    if stop_asked or code in (130, -signal.SIGINT):
        return Decision(STOPPED, tries)
    if code in (2, 3, 4):
        return Decision(FAILED, tries)
    if shut_down:
        return Decision(INTERRUPTED, tries)
    if code == 75:
        return Decision(STOPPED, tries)
    tries = 0 if progressed else tries + 1
    if tries >= TRIES:
        return Decision(GIVEN_UP, tries)
    rung = tries + (NO_ROOM_RUNGS if code == 5 else 0)
    return Decision(WAITING, tries, pauses[min(rung, len(pauses) - 1)])


class Supervisor:
    """The night of one run.

    Until the run has begun (its first step or checkpoint stands in its record), nothing is written into
    its folder, which ``cpulm train`` wants to find empty, and nothing is tried again: someone sits at
    the terminal and wants to know what is wrong.

    Args:
        night: the record to keep.
        first: what the first process is given: ``train ...`` or ``resume RUN ...``.
        begun: True where the night is gone on with.
        program: what is started with these arguments; None for cpulm itself.
        pauses: see :data:`PAUSES`.
        tick_seconds: how often the request to stop and the process are looked at.
    """

    def __init__(
        self,
        run: RunDir,
        night: SupervisorState,
        first: Sequence[str],
        log: Log,
        *,
        begun: bool = False,
        program: Sequence[str] | None = None,
        pauses: Sequence[float] = PAUSES,
        tick_seconds: float = 1.0,
    ) -> None:
        self._run, self._night, self._first, self._log = run, night, list(first), log
        self._begun = begun
        self._program = cpulm_command() if program is None else list(program)
        self._pauses, self._tick = pauses, tick_seconds
        self._wake = threading.Event()
        self._stop_asked = self._shut_down = False
        self._old_request = _changed_at(run.stop)
        self._child: subprocess.Popen[bytes] | None = None
        self._summary_due = 0.0
        self._clock = time.time() - time.monotonic()

    def work(self) -> int:
        """See the run through the night.

        Returns:
            The exit code of its last process; 75 where the night was interrupted between two.
        """
        self._listen()
        arguments = self._first
        while True:
            code = self._train(arguments)
            if not self._begun:
                self._say(f"ended before the run had begun: {exit_in_words(code)}")
                return code
            decision = self._decide(code)
            pause = decision.pause_seconds
            if pause is None or not self._wait(pause):
                self._conclude()
                return code if pause is None else 75
            arguments = resume_arguments(self._night)

    # One process

    def _train(self, arguments: Sequence[str]) -> int:
        part = Attempt(began=time.time(), from_step=supervisor_state.checkpoint_step(self._run))
        self._log.make_room(alone=True)
        self._say(f"cpulm {shlex.join(arguments)}")
        said_from = self._log.size()
        self._child = child = subprocess.Popen(
            [*self._program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log.file,
            stderr=subprocess.STDOUT,
            env=log_environment(),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._night.parts.append(part)
        self._night.state, self._night.child_pid = TRAINING, child.pid
        self._night.waiting_until = None
        if self._begun:
            self._keep()
        asked = False
        while child.poll() is None:
            if not asked and (self._shut_down or (self._stop_asked and not self._begun)):
                asked = True
                child.terminate()
            self._look()
            self._wake.wait(self._tick)
            self._wake.clear()
        self._look()
        self._child = self._night.child_pid = None
        part.ended, part.code = time.time(), child.returncode
        last = supervisor_state.last_event(self._run.metrics, "step")
        part.step = last["step"] if last else part.from_step
        part.said = last_error(read_tail(self._log.path, said_from)) if child.returncode else ""
        return child.returncode

    def _look(self) -> None:
        """What is to be seen to while a process works."""
        self._follow_clock()
        if not self._begun:
            self._begun = self._has_begun()
            if self._begun:
                self._keep()
        if self._begun and self._log.path != supervisor_state.log_path(self._run):
            self._log.move_to(supervisor_state.log_path(self._run))
        if self._begun and time.monotonic() >= self._summary_due:
            self._summarize()
        self._log.make_room(alone=False)
        request = self._run.stop
        changed = _changed_at(request)
        if changed not in (None, self._old_request):
            self._stop_asked = True
        if self._stop_asked and self._begun and changed in (None, self._old_request) and self._child:
            # A process that was just starting has taken the request for an old one: it is said again.
            self._leave_request(request)

    def _follow_clock(self) -> None:
        """Keep the night's times comparable with those of the run's events if the clock is set back.

        Later events stay later if it is set forward, which on some systems cannot be told from sleep.
        """
        clock = time.time() - time.monotonic()
        if clock < self._clock - _CLOCK_SLACK_SECONDS:
            self._night.set_back(self._clock - clock)
        self._clock = clock

    def _leave_request(self, request: Path) -> None:
        try:
            request.write_text("asked for overnight\n", encoding="utf-8")
        except OSError as error:
            self._say(f"cannot write {request}: {error.strerror}")

    def _has_begun(self) -> bool:
        began = self._night.parts[-1].began
        return supervisor_state.last_event(self._run.metrics, "step", "checkpoint", since=began) is not None

    # Between two processes

    def _decide(self, code: int) -> Decision:
        night, part = self._night, self._night.parts[-1]
        newer = progressed(part, supervisor_state.checkpoint_step(self._run))
        if newer:
            night.arguments = []  # that checkpoint holds them
        complete = supervisor_state.is_complete(self._run, part.began)
        decision = decide(
            0 if complete else code,
            progressed=newer,
            tries=night.tries,
            stop_asked=self._stop_asked,
            shut_down=self._shut_down,
            pauses=self._pauses,
        )
        night.state, night.tries = decision.state, decision.tries
        part.pause_seconds = decision.pause_seconds
        then = ""
        if decision.pause_seconds is not None:
            night.waiting_until = time.time() + decision.pause_seconds
            then = f"; again in {format_duration(decision.pause_seconds)}"
        elif decision.state == GIVEN_UP:
            then = f"; {decision.tries} starts brought no newer checkpoint, so this is the end"
        self._say(f"{exit_in_words(code)}{then or ('; the run was complete' if complete and code else '')}")
        self._keep()
        self._draw()
        return decision

    def _wait(self, seconds: float) -> bool:
        """Whether the pause went by without a request to stop."""
        end = time.monotonic() + seconds
        while not (self._stop_asked or self._shut_down):
            left = end - time.monotonic()
            if left <= 0:
                return True
            self._wake.wait(min(left, self._tick))
            self._wake.clear()
            self._look()
        return False

    def _conclude(self) -> None:
        if self._night.state == WAITING:
            self._night.state = STOPPED if self._stop_asked else INTERRUPTED
        self._night.waiting_until = None
        self._say(self._night.state.replace("_", " "))
        self._keep()

    def _keep(self) -> None:
        """Write the record and the summary; a disk that takes nothing must not end the night."""
        try:
            supervisor_state.write(self._run, self._night)
        except (OSError, CpulmError) as error:
            self._say(f"{self._run.overnight} cannot be written: {error}")
        self._summarize()

    def _summarize(self) -> None:
        self._summary_due = time.monotonic() + SUMMARY_SECONDS
        try:
            nights.write_summary(self._run)
        except Exception as error:  # nor must a bug in a page
            self._say(f"the summary cannot be written: {type(error).__name__}: {error}")

    def _draw(self) -> None:
        """The page anew where a process died without writing it."""
        if self._begun and not self._shut_down and is_outdated(self._run):
            problem = write_report(self._run)
            if problem:
                self._say(problem)

    def _say(self, text: str) -> None:
        self._log.say(text)

    # Signals

    def _listen(self) -> None:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stop_asked = True
            self._wake.set()

        def shut_down(_number: int, _frame: FrameType | None) -> None:
            self._shut_down = True
            self._wake.set()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, shut_down)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)


def progressed(part: Attempt, step: int | None) -> bool:
    """Whether a process that began with ``part.from_step`` left a newer checkpoint, at ``step``."""
    return step is not None and step > (0 if part.from_step is None else part.from_step)


def train_arguments(run: RunDir, arguments: Sequence[str]) -> list[str]:
    """Arguments of the process that begins a run."""
    return ["train", *arguments, f"--out={run.path}", *_added(arguments)]


def resume_arguments(night: SupervisorState) -> list[str]:
    """Arguments of a process that goes on with a run."""
    return ["resume", *night.arguments, *_added(night.arguments), "--", night.run]


def _added(arguments: Sequence[str]) -> list[str]:
    nice = [] if {"--nice", "--no-nice"} & set(arguments) else ["--nice"]
    return ["--headless", *nice]


def _changed_at(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def at_boot(run: RunDir) -> Supervisor | None:
    """The supervisor that goes on with an interrupted night; None where there is nothing to go on with."""
    night = supervisor_state.read(run)
    if night is None or night.is_watched() or night.state in ENDED:
        return None
    log = Log(supervisor_state.log_path(run))
    if night.parts and night.parts[-1].ended is None:
        _close(night, run)
    if run.stop.exists():
        night.state = STOPPED
    if night.tries >= TRIES:
        night.state = GIVEN_UP
    night.claim()
    night.run = str(run.path)
    if Path(night.folder).is_dir():
        os.chdir(night.folder)  # where paths in the run's settings begin
    supervisor = Supervisor(run, night, resume_arguments(night), log, begun=True)
    if night.state in ENDED:
        supervisor._conclude()
        return None
    return supervisor


def _close(night: SupervisorState, run: RunDir) -> None:
    """End the part that was under way when the computer, or the supervisor, went away."""
    part = night.parts[-1]
    last = supervisor_state.last_event(run.metrics, "step")
    part.ended = float(last["time"]) if last else part.began
    part.step = last["step"] if last else part.from_step
    further = progressed(part, supervisor_state.checkpoint_step(run))
    decision = decide(None, progressed=further, tries=night.tries)
    if supervisor_state.is_complete(run, part.began):
        night.state = FINISHED
    night.tries, part.pause_seconds = decision.tries, max(0.0, time.time() - part.ended)


def supervise(run: RunDir, log: Path, arguments: Sequence[str], *, new: bool) -> Supervisor:
    """The supervisor of a run that nobody supervises yet.

    Args:
        log: the file it writes until the run has begun; then it moves into the run's folder.
        arguments: of ``cpulm train`` for a new run, otherwise of ``cpulm resume``.
    """
    night = supervisor_state.new_state(run, [] if new else list(arguments))
    night.claim()
    first = train_arguments(run, arguments) if new else resume_arguments(night)
    return Supervisor(run, night, first, Log(log))
