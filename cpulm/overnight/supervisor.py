"""Watches an overnight run: starts it, starts it again after a crash, and decides when to stop trying.

It is a process of its own, ``cpulm supervise``. It loads neither torch nor rich: it needs
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

from cpulm import exit_codes
from cpulm.command import cpulm_command, last_error, log_environment, read_tail
from cpulm.errors import CpulmError
from cpulm.events import StepDone
from cpulm.exit_codes import exit_in_words
from cpulm.overnight import summary as nights
from cpulm.overnight.log import Log
from cpulm.overnight.report_page import is_outdated, write_report
from cpulm.run_dir import RunDir
from cpulm.runlog.find_event import last_event
from cpulm.runs import supervisor_state
from cpulm.runs.stop_file import is_stop_requested, request_stop, stop_requested_at
from cpulm.runs.supervisor_state import ENDED, Attempt, NightState, SupervisorState
from cpulm.units import format_duration

PAUSES = (5.0, 15.0, 45.0, 135.0, 405.0, 900.0)
"""Seconds before the next start, by the number of starts without progress; the last one repeats."""

TRIES = 8
"""Starts without a newer checkpoint after which the supervisor gives up."""

_HOPELESS = (exit_codes.SETTINGS, exit_codes.DATA, exit_codes.DIVERGED)
"""Another start would end in the same way."""

NO_ROOM_RUNGS = 3
"""Disk and memory become available when something else ends, not within seconds: pauses start longer."""

SUMMARY_SECONDS = 600.0
"""The summary is rewritten this often while the run trains: someone may look in the middle of the night."""

_CLOCK_SLACK_SECONDS = 0.5
"""A clock that is adjusted gently stays within this from one look to the next."""


@dataclass(frozen=True)
class Decision:
    """The reaction to the end of a process: another start after a pause, or a state that ends the night."""

    state: NightState
    tries: int
    pause_seconds: float | None = None


def decide(
    code: int | None,
    *,
    progressed: bool,
    tries: int,
    stop_requested: bool = False,
    shut_down: bool = False,
    pauses: Sequence[float] = PAUSES,
) -> Decision:
    """Decide what to do after a process has ended.

    Args:
        code: its exit code, negative for a signal; None if it vanished with the computer.
        progressed: whether the newest checkpoint is newer than at its start.
        tries: starts before it that brought no newer checkpoint.
        stop_requested: whether the user wants the run stopped.
        shut_down: whether the supervisor itself was requested to end, as when the computer shuts down.
    """
    if code == exit_codes.FINISHED:
        return Decision("finished", 0)
    if stop_requested or code in (exit_codes.ABORTED, -signal.SIGINT):
        return Decision("stopped", tries)
    if code in _HOPELESS:
        return Decision("failed", tries)
    if shut_down:
        return Decision("interrupted", tries)
    if code == exit_codes.STOPPED:
        return Decision("stopped", tries)
    tries = 0 if progressed else tries + 1
    if tries >= TRIES:
        return Decision("given_up", tries)
    rung = tries + (NO_ROOM_RUNGS if code == exit_codes.RESOURCES else 0)
    return Decision("waiting", tries, pauses[min(rung, len(pauses) - 1)])


class Supervisor:
    """Runs one run's processes until it has ended.

    Until the run has begun (its log holds a first step or checkpoint), nothing is written into its folder,
    which must be empty for ``cpulm train``, and nothing is started again: someone at the terminal wants to
    see what is wrong.

    Args:
        night: the state to keep in ``overnight.json``.
        first: arguments of the first process: ``train ...`` or ``resume ... RUN``.
        begun: True if an interrupted night is continued.
        program: what is started with these arguments; None for cpulm itself.
        pauses: see :data:`PAUSES`.
        tick_seconds: how often the stop file and the process are polled.
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
        self._stop_requested = self._shut_down = False
        self._old_stop_time = stop_requested_at(run)
        self._child: subprocess.Popen[bytes] | None = None
        self._summary_due = 0.0
        self._clock = time.time() - time.monotonic()

    def run(self) -> int:
        """Start processes until the run has ended.

        Returns:
            The exit code of the last process; 75 if the night was interrupted between two.
        """
        self._handle_signals()
        arguments = self._first
        while True:
            code = self._train(arguments)
            if not self._begun:
                self._log_line(f"ended before the run had begun: {exit_in_words(code)}")
                return code
            decision = self._decide(code)
            pause = decision.pause_seconds
            if pause is None or not self._wait(pause):
                self._end_night()
                return code if pause is None else exit_codes.STOPPED
            arguments = resume_arguments(self._night)

    # One process

    def _train(self, arguments: Sequence[str]) -> int:
        attempt = Attempt(began=time.time(), from_step=supervisor_state.checkpoint_step(self._run))
        self._log.rotate(alone=True)
        self._log_line(f"cpulm {shlex.join(arguments)}")
        said_from = self._log.size()
        self._child = child = subprocess.Popen(
            [*self._program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log.file,
            stderr=subprocess.STDOUT,
            env=log_environment(),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._night.attempts.append(attempt)
        self._night.state, self._night.child_pid = "training", child.pid
        self._night.waiting_until = None
        if self._begun:
            self._save()
        asked = False
        while child.poll() is None:
            if not asked and (self._shut_down or (self._stop_requested and not self._begun)):
                asked = True
                child.terminate()
            self._poll()
            self._wake.wait(self._tick)
            self._wake.clear()
        self._poll()
        self._child = self._night.child_pid = None
        attempt.ended, attempt.code = time.time(), child.returncode
        last = last_event(self._run.metrics, StepDone)
        attempt.step = last.step if last else attempt.from_step
        attempt.error = last_error(read_tail(self._log.path, said_from)) if child.returncode else ""
        return child.returncode

    def _poll(self) -> None:
        """Check the stop file, the log and the clock while a process works."""
        self._follow_clock()
        if not self._begun:
            self._begun = supervisor_state.has_begun(self._run, self._night.attempts[-1].began)
            if self._begun:
                self._save()
        if self._begun and self._log.path != self._run.supervisor_log:
            self._log.move_to(self._run.supervisor_log)
        if self._begun and time.monotonic() >= self._summary_due:
            self._summarize()
        self._log.rotate(alone=False)
        changed = stop_requested_at(self._run)
        if changed not in (None, self._old_stop_time):
            self._stop_requested = True
        if self._stop_requested and self._begun and changed in (None, self._old_stop_time) and self._child:
            # A process that was just starting has removed the request as an old one: repeat it.
            self._request_stop_again()

    def _follow_clock(self) -> None:
        """Keep the night's times comparable with those of the run's events if the clock is set back.

        Later events stay later if it is set forward, which on some systems looks the same as sleep.
        """
        clock = time.time() - time.monotonic()
        if clock < self._clock - _CLOCK_SLACK_SECONDS:
            self._night.set_back(self._clock - clock)
        self._clock = clock

    def _request_stop_again(self) -> None:
        try:
            request_stop(self._run)
        except CpulmError as error:
            self._log_line(error.message)

    # Between two processes

    def _decide(self, code: int) -> Decision:
        night, attempt = self._night, self._night.attempts[-1]
        newer = progressed(attempt, supervisor_state.checkpoint_step(self._run))
        if newer:
            night.arguments = []  # that checkpoint holds them
        complete = supervisor_state.is_complete(self._run, attempt.began)
        decision = decide(
            0 if complete else code,
            progressed=newer,
            tries=night.tries,
            stop_requested=self._stop_requested,
            shut_down=self._shut_down,
            pauses=self._pauses,
        )
        night.state, night.tries = decision.state, decision.tries
        attempt.pause_seconds = decision.pause_seconds
        then = ""
        if decision.pause_seconds is not None:
            night.waiting_until = time.time() + decision.pause_seconds
            then = f"; starting it again in {format_duration(decision.pause_seconds)}"
        elif decision.state == "given_up":
            then = f"; giving up: {decision.tries} starts in a row brought no newer checkpoint"
        self._log_line(
            f"{exit_in_words(code)}{then or ('; the run was complete' if complete and code else '')}"
        )
        self._save()
        self._update_report()
        return decision

    def _wait(self, seconds: float) -> bool:
        """Wait; whether the pause ended without a request to stop."""
        end = time.monotonic() + seconds
        while not (self._stop_requested or self._shut_down):
            left = end - time.monotonic()
            if left <= 0:
                return True
            self._wake.wait(min(left, self._tick))
            self._wake.clear()
            self._poll()
        return False

    def _end_night(self) -> None:
        if self._night.state == "waiting":
            self._night.state = "stopped" if self._stop_requested else "interrupted"
        self._night.waiting_until = None
        self._log_line(self._night.state.replace("_", " "))
        self._save()

    def _save(self) -> None:
        """Write the state and the summary; a full disk must not end the night."""
        try:
            supervisor_state.write(self._run, self._night)
        except (OSError, CpulmError) as error:
            self._log_line(f"{self._run.overnight} cannot be written: {error}")
        self._summarize()

    def _summarize(self) -> None:
        self._summary_due = time.monotonic() + SUMMARY_SECONDS
        try:
            nights.write_summary(self._run)
        except Exception as error:  # a bug in the summary must not end the night either
            self._log_line(f"the summary cannot be written: {type(error).__name__}: {error}")

    def _update_report(self) -> None:
        """Write the report page if a process died without writing it."""
        if self._begun and not self._shut_down and is_outdated(self._run):
            problem = write_report(self._run)
            if problem:
                self._log_line(problem)

    def _log_line(self, text: str) -> None:
        self._log.write_line(text)

    # Signals

    def _handle_signals(self) -> None:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stop_requested = True
            self._wake.set()

        def shut_down(_number: int, _frame: FrameType | None) -> None:
            self._shut_down = True
            self._wake.set()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, shut_down)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)


def progressed(attempt: Attempt, step: int | None) -> bool:
    """Whether a process that began at ``attempt.from_step`` left a newer checkpoint, of ``step``."""
    return step is not None and step > (0 if attempt.from_step is None else attempt.from_step)


def train_arguments(run: RunDir, arguments: Sequence[str]) -> list[str]:
    """Arguments of the process that starts a run."""
    return ["train", *_with_priority(arguments), f"--out={run.path}", "--headless"]


def resume_arguments(night: SupervisorState) -> list[str]:
    """Arguments of a process that continues a run; its checkpoint holds the priority."""
    return ["resume", *night.arguments, "--headless", "--", night.run]


def _with_priority(arguments: Sequence[str]) -> list[str]:
    given = {"--nice", "--no-nice"} & set(arguments)
    return [*arguments, *([] if given else ["--nice"])]


def at_boot(run: RunDir) -> Supervisor | None:
    """The supervisor that continues an interrupted night; None if there is nothing to continue."""
    night = supervisor_state.read(run)
    if night is None or night.is_watched() or night.state in ENDED:
        return None
    log = Log(run.supervisor_log)
    if night.attempts and night.attempts[-1].ended is None:
        _close_attempt(night, run)
    if is_stop_requested(run):
        night.state = "stopped"
    if night.tries >= TRIES:
        night.state = "given_up"
    night.set_supervisor()
    night.run = str(run.path)
    if Path(night.folder).is_dir():
        os.chdir(night.folder)  # relative paths in the run's settings start there
    supervisor = Supervisor(run, night, resume_arguments(night), log, begun=True)
    if night.state in ENDED:
        supervisor._end_night()
        return None
    return supervisor


def _close_attempt(night: SupervisorState, run: RunDir) -> None:
    """End the attempt that was running when the computer, or the supervisor, was ended."""
    attempt = night.attempts[-1]
    last = last_event(run.metrics, StepDone)
    attempt.ended = last.time if last else attempt.began
    attempt.step = last.step if last else attempt.from_step
    further = progressed(attempt, supervisor_state.checkpoint_step(run))
    decision = decide(None, progressed=further, tries=night.tries)
    if supervisor_state.is_complete(run, attempt.began):
        night.state = "finished"
    night.tries, attempt.pause_seconds = decision.tries, max(0.0, time.time() - attempt.ended)


def supervise(run: RunDir, log: Path, arguments: Sequence[str], *, new: bool) -> Supervisor:
    """The supervisor of a run that nobody supervises yet.

    Args:
        log: the file it writes until the run has begun; then it moves into the run's folder.
        arguments: of ``cpulm train`` for a new run, otherwise of ``cpulm resume``.
    """
    night = supervisor_state.new_state(run, [] if new else _with_priority(arguments))
    night.set_supervisor()
    first = train_arguments(run, arguments) if new else resume_arguments(night)
    return Supervisor(run, night, first, Log(log))
