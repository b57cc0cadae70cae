"""The run that a launcher's processes have begun, which its later starts continue. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path

LAUNCH = "CPULM_LAUNCH"
"""The variable that names the file in which the processes of a launch keep where their run is."""


def begun_run() -> Path | None:
    """The folder of the run that an earlier start by the same launcher has begun; None if none has."""
    try:
        return Path(os.fsdecode(Path(os.environ[LAUNCH]).read_bytes()))
    except (KeyError, OSError):
        return None


def keep_begun(run: Path) -> None:
    """Tell later starts by the same launcher that the run has begun, and where it is."""
    if LAUNCH in os.environ:
        Path(os.environ[LAUNCH]).write_bytes(os.fsencode(run.absolute()))
