"""Starts, stops and ends the process that trains a trial."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from cpulm.command import cpulm_command, last_error, last_line, log_environment, read_tail, typed
from cpulm.errors import CpulmError, ResourceError
from cpulm.regular_file import open_own
from cpulm.runs.stop_file import is_stop_requested, request_stop
from cpulm.sweep.plan import Plan, SweepDir, Trial


class TrialProcess:
    """``cpulm train`` in the trial's folder, from its last checkpoint if it has one.

    The terminal's Ctrl-C does not reach it: only the sweep gets it, and decides which trials stop, and when.

    Raises:
        ResourceError: there is no room for its log, or no memory for one more process.
    """

    def __init__(self, folder: SweepDir, plan: Plan, trial: Trial) -> None:
        self.trial = trial
        self.stop_requested = False
        self._run, self._log = folder.run(trial), folder.log(trial)
        config, out = folder.settings(trial).resolve(), self._run.path.resolve()
        command = cpulm_command("train", f"--config={config}", f"--out={out}", "--resume", "--headless")
        try:
            with os.fdopen(open_own(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as log:
                self._said_from = log.tell()
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=plan.directory if Path(plan.directory).is_dir() else None,
                    env=log_environment(settings=False),  # they would override the trial's own
                    start_new_session=True,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
        except OSError as error:
            raise ResourceError(
                f"cannot start {trial.name} with its log {self._log}: {error.strerror}",
                f"solve this, then continue with `cpulm resume {typed(folder.path)}`",
            ) from error

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def request_stop(self) -> None:
        """Request it to end its step and save; to be repeated until it has ended.

        A process that is just starting deletes an existing request, because it takes it for an old one.
        """
        self.stop_requested = True
        if is_stop_requested(self._run):
            return
        if self._run.lock.exists():
            try:
                request_stop(self._run)
                return
            except CpulmError:  # a full disk: then as if there is no folder yet
                pass
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it; its last checkpoint stays."""
        self._process.kill()
        self._process.wait()

    def error_message(self) -> str:
        """The error that it ended with, without its hint, or else the last line of its output."""
        output = read_tail(self._log, self._said_from)
        return last_error(output) or last_line(output)
