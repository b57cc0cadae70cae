"""The process that trains a trial: started, asked to stop, ended."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from cpulm.command import cpulm_command, last_error, last_line, log_environment, read_tail
from cpulm.errors import CpulmError, ResourceError
from cpulm.runs.stop_file import ask_to_stop
from cpulm.sweep.plan import Plan, SweepDir, Trial


class TrialProcess:
    """``cpulm train`` in the trial's folder, from its last checkpoint where it has one.

    Out of reach of the terminal's Ctrl-C, which the sweep alone hears: it decides who stops, and when.

    Raises:
        ResourceError: where the system has no room for its log, or no memory for one more process.
    """

    def __init__(self, folder: SweepDir, plan: Plan, trial: Trial) -> None:
        self.trial = trial
        self.stop_asked = False
        self._run, self._log = folder.run(trial), folder.log(trial)
        config, out = folder.settings(trial).resolve(), self._run.path.resolve()
        command = cpulm_command("train", f"--config={config}", f"--out={out}", "--resume", "--headless")
        try:
            with self._log.open("ab") as log:
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
                f"mend it, then go on with `cpulm sweep --resume {folder.path}`",
            ) from error

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        return self._process.poll()

    def ask(self) -> None:
        """Ask it to end its step and save; to be said again until it has ended.

        A process that is just starting takes a request that it finds for an old one.
        """
        self.stop_asked = True
        if self._run.stop.exists():
            return
        if self._run.lock.exists():
            try:
                ask_to_stop(self._run)
                return
            except CpulmError:  # a full disk: then as where there is no folder yet
                pass
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now; its last checkpoint stays."""
        self._process.kill()
        self._process.wait()

    def last_words(self) -> str:
        """The error that it ended with, without its hint, or else the last line of its output."""
        output = read_tail(self._log, self._said_from)
        return last_error(output) or last_line(output)
