"""What of a run can be deleted, and its deletion."""

from __future__ import annotations

import shutil
from pathlib import Path

from cpulm.command import typed
from cpulm.errors import SettingsError
from cpulm.run_dir import RunDir
from cpulm.runs.lock import locked
from cpulm.runs.status import is_at_work


def prunable(run: RunDir, *, complete: bool) -> list[Path]:
    """Files that neither the use of the model nor the next `cpulm resume` needs.

    These are the numbered checkpoints and, if the run came to its end, the weights of its teachers. They are
    kept if there is no other checkpoint.
    """
    if not run.latest.is_file() and not run.best.is_file():
        return []
    teachers = sorted(run.path.glob("teacher-*.pt")) if complete else []
    return [*run.numbered_checkpoints(), *teachers]


def require_idle(run: RunDir) -> None:
    """Raise SettingsError if a process trains the run, or its supervisor is about to start one."""
    if is_at_work(run):
        raise SettingsError(f"{run.path} is being trained", f"stop it first: `cpulm stop {typed(run.path)}`")


def delete(run: RunDir) -> list[str]:
    """Delete what cpulm wrote in the run's folder, and the folder if nothing else is in it.

    Returns:
        The names of what stays, because cpulm did not write it.

    Raises:
        SettingsError: if the run is being trained.
    """
    require_idle(run)
    with locked(run, to_delete=True):
        for path in sorted(run.path.iterdir()):
            if run.wrote(path.name) and path != run.lock:
                remove(path)
    run.lock.unlink(missing_ok=True)
    left = sorted(path.name for path in run.path.iterdir())
    if not left:
        run.path.rmdir()
    return left


def remove(path: Path) -> None:
    """Delete a file, a link or a folder; what is already gone is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
