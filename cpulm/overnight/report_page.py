"""Writes the page of a run, ``report.html`` in its folder, whenever the run ends.

A separate process does it: reading a long log and drawing must not need the memory of a run that is at its
limit, and an error there must not change how the run ended.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from cpulm.command import cpulm_command, last_error, last_line, log_environment
from cpulm.exit_codes import exit_in_words
from cpulm.run_dir import RunDir
from cpulm.system.allocator import release_memory

_LONGEST_SECONDS = 120.0
"""Seconds; a log of a million lines takes 3 to 5."""


def write_report(run: RunDir) -> str:
    """Write the page of ``run`` if it has a checkpoint; returns what prevented it, or an empty string."""
    if not run.latest.is_file():
        return ""  # the next run may use a folder without a checkpoint: leave it empty
    release_memory()  # of the run, which may have filled the memory: now both processes must fit
    return draw_report(run, run.report)


def draw_report(run: RunDir, file: Path) -> str:
    """Write the page of ``run`` to ``file``; returns what prevented it, or an empty string."""
    command = cpulm_command("analyze", f"--html={file}", "--", str(run.path))
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=log_environment(),
            timeout=_LONGEST_SECONDS,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            check=False,
        )
    except (OSError, subprocess.SubprocessError, KeyboardInterrupt) as error:
        return f"{file} was not written: {type(error).__name__} {error}".rstrip()
    if done.returncode:
        why = last_error(done.stderr) or last_line(done.stderr) or exit_in_words(done.returncode)
        return f"{file} was not written: {why}"
    return ""


def is_outdated(run: RunDir) -> bool:
    """Whether the log is newer than the page, and the run's settings request a page."""
    from cpulm.runs.stored_settings import read_settings

    try:
        if run.report.stat().st_mtime_ns >= run.metrics.stat().st_mtime_ns:
            return False
    except OSError:
        if not run.metrics.is_file():
            return False
    wanted = read_settings(run).get("log")
    return not (isinstance(wanted, dict) and wanted.get("report") is False)
