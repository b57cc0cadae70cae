"""The process that trains a trial: started, asked to stop, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from cpulm.errors import CpulmError, ResourceError
from cpulm.runs.stop_file import ask_to_stop
from cpulm.settings_resolver import ENV_PREFIX
from cpulm.sweep.plan import Plan, SweepDir, Trial

_LOG_TAIL_BYTES = 1 << 13
_OF_A_TERMINAL = ("FORCE_COLOR", "COLUMNS", "LINES")


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
        command = [sys.executable, "-m", "cpulm", "train", "--config", str(config), "--out", str(out)]
        try:
            with self._log.open("ab") as log:
                self._said_from = log.tell()
                self._process = subprocess.Popen(
                    [*command, "--resume", "--headless"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=plan.directory if Path(plan.directory).is_dir() else None,
                    env=_environment(),
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
        """The error that it ended with, as it said it, without its hint."""
        try:
            with self._log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._said_from, end - _LOG_TAIL_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        said = [line for line in lines if line.strip()]
        return errors[-1] if errors else said[-1].strip() if said else ""


def _environment() -> dict[str, str]:
    """Without settings: they would lie over those of the trial. The log is plain text in UTF-8, unwrapped."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_A_TERMINAL and not (name.upper().startswith(ENV_PREFIX) and "__" in name)
    }
    return {**environment, "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8", "PYTHONFAULTHANDLER": "1"}
