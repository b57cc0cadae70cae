"""Makes an older checkpoint the one that its run continues from."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.errors import DataError
from cpulm.run_dir import RunDir


def go_back_to(checkpoint: Checkpoint, source: Path, run: RunDir) -> list[str]:
    """Prepare the run's folder for a run that continues from ``checkpoint``, read from ``source`` in it.

    If that is not ``latest.pt``, it becomes ``latest.pt`` before the record is cut, so that the newest
    checkpoint is never ahead of the record. A better model in ``best.pt`` stays the best one: ``checkpoint``
    takes over its loss.

    Returns:
        What was done, in sentences.
    """
    notices: list[str] = []
    if source.name != run.latest.name:
        with suppress(OSError):  # another user's file
            os.utime(source)  # by their times it is now the newest one, also if latest.pt is damaged later
        checkpoints.duplicate(source, run.latest)
    later = [run.numbered(step).name for step in run.numbered_steps() if step > checkpoint.step]
    if later:
        notices.append(
            f"the record ends at step {checkpoint.step}; {', '.join(later)} of later steps are kept until "
            "checkpoint.keep deletes them, before newer ones"
        )
    best = _best(run)
    state = checkpoint.state
    if best is None or best.best_loss is None or best.state.best_step is None:
        return notices
    if state.best_loss is None or best.best_loss < state.best_loss:
        state.keep_best(best.state)
        notices.append(
            f"{run.best.name} of step {best.state.best_step} (loss {best.best_loss:.4f}) stays until a lower "
            "loss is reached"
        )
    return notices


def _best(run: RunDir) -> Checkpoint | None:
    """What ``best.pt`` tells of itself; None if there is none, or it is damaged."""
    try:
        return checkpoints.load(run.best, mapped=True) if run.best.is_file() else None
    except DataError:
        return None
