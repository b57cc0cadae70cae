"""Decides when a run writes its checkpoints, writes them, and handles a disk that fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cpulm.atomic import write_text
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.command import typed
from cpulm.errors import ResourceError
from cpulm.events import CheckpointSaved, Listener, Notice, Progress
from cpulm.run_dir import RunDir
from cpulm.settings import settings_yaml
from cpulm.settings.record_settings import CheckpointSettings
from cpulm.units import format_duration

RETRY_SECONDS = 30.0
"""Seconds between two attempts after a failed save."""
LAST_TRIES_SECONDS = 60.0
"""How long a run waits at its end if its last checkpoint cannot be written."""
_MAX_COST = 0.01
"""The fraction of a run's time above which the cost of checkpoints gives a warning."""


class Checkpointer:
    """Writes the checkpoints of one run.

    A save that fails does not end the run: the older checkpoint stays intact, the user is warned at once,
    and the save is attempted again every :data:`RETRY_SECONDS`. If it still fails when the next checkpoint is
    due, ResourceError ends the run.

    Args:
        run: where to write.
        make: makes a checkpoint of the run as it is now.
        emit: receives every checkpoint and every failure.
        saved_step: the step of the newest checkpoint on the disk.
        saved_at: the run's own time at that step, in seconds.
        writes: False in all but the main process of a run: nothing is ever due or written.
    """

    def __init__(
        self,
        run: RunDir,
        settings: CheckpointSettings,
        make: Callable[[], Checkpoint],
        emit: Listener,
        *,
        saved_step: int = 0,
        saved_at: float = 0.0,
        writes: bool = True,
    ) -> None:
        self._run = run
        self._settings = settings
        self._make = make
        self._emit = emit
        self._writes = writes
        self.saved_step = saved_step
        self._saved_at = saved_at
        self._failed_at: float | None = None
        self._failed_step = 0
        self._tried_at = 0.0
        self._requested = False
        self._spent_seconds = 0.0
        self._warned_of_cost = False
        self.slowest_seconds = 0.0

    def request(self) -> None:
        """Request a checkpoint after the current step; may be called from any thread."""
        self._requested = True

    def is_due(self, step: int, elapsed_seconds: float) -> bool:
        """Whether a checkpoint is due: by steps, by time, by request, or after a save that failed."""
        if step == self.saved_step or not self._writes:
            return False
        if self._failed_at is not None:
            waited = elapsed_seconds - self._tried_at >= min(RETRY_SECONDS, self._settings.every)
            return waited or self._is_scheduled(step, elapsed_seconds, self._failed_at)
        return self._requested or self._is_scheduled(step, elapsed_seconds, self._saved_at)

    def save(self, step: int, elapsed_seconds: float) -> bool:
        """Write ``latest.pt`` and the step's numbered checkpoint; delete the oldest numbered ones.

        Returns:
            Whether it is on the disk.

        Raises:
            ResourceError: if saving failed when the last checkpoint was due, and still fails.
        """
        if not self._writes:
            return True
        try:
            self._write_latest()
            self._write_numbered(step)
        except (OSError, RuntimeError, ResourceError) as error:
            self._note_failure(error, step, elapsed_seconds)
            return False
        self._note_success(step, elapsed_seconds)
        self._warn_of_cost(elapsed_seconds)
        return True

    def save_best(self, step: int, elapsed_seconds: float) -> bool:
        """Write ``best.pt``, which is also the new ``latest.pt``: a run continues from its newest state.

        Returns:
            Whether it is on the disk. A failure is reported and does not end the run.
        """
        if not self._writes:
            return True
        try:
            self._write(self._run.best, "best")
            checkpoints.duplicate(self._run.best, self._run.latest)
        except (OSError, RuntimeError, ResourceError) as error:
            self._warn(f"best.pt could not be written ({_reason(error)}); the previous best model is kept")
            return False
        self._note_success(step, elapsed_seconds)
        return True

    def save_last(self) -> None:
        """Write ``latest.pt`` at the end of a run, and wait for a disk that does not take it.

        Raises:
            ResourceError: if it still fails after :data:`LAST_TRIES_SECONDS`.
        """
        began, wait = time.monotonic(), 1.0
        while self._writes:
            try:
                self._write_latest()
                return
            except (OSError, RuntimeError, ResourceError) as error:
                left = LAST_TRIES_SECONDS - (time.monotonic() - began)
                if left <= 0:
                    raise self._no_room(error) from error
                self._warn(
                    f"the last checkpoint could not be written ({_reason(error)}); "
                    f"trying again for {format_duration(left)}"
                )
                time.sleep(min(wait, left))
                wait *= 2

    def _is_scheduled(self, step: int, elapsed_seconds: float, since: float) -> bool:
        every_steps = self._settings.every_steps
        if every_steps and step % every_steps == 0:
            return True
        return elapsed_seconds - since >= self._settings.every

    def _write_latest(self) -> None:
        if not self._run.path.is_dir():
            self._run.path.mkdir(parents=True)
            write_text(self._run.settings, settings_yaml(self._make().settings))
            self._warn(f"the run's folder {self._run.path} was deleted; it is created again from memory")
        self._write(self._run.latest, "latest")

    def _write_numbered(self, step: int) -> None:
        keep = self._settings.keep or (0 if self._run.best.is_file() else 1)  # never one file alone
        if keep and step:
            checkpoints.duplicate(self._run.latest, self._run.numbered(step))
        for old in self._run.numbered_checkpoints()[: -keep or None]:
            old.unlink(missing_ok=True)

    def _write(self, path: Path, role: str) -> None:
        # At a new stage the log is flushed, so that no checkpoint is ever newer than the log.
        self._emit(Progress(stage="saving a checkpoint", done=0, total=None, unit="checkpoints"))
        began = time.perf_counter()
        checkpoint = self._make()
        size = checkpoints.save(checkpoint, path)
        seconds = time.perf_counter() - began
        self._spent_seconds += seconds
        self.slowest_seconds = max(self.slowest_seconds, seconds)
        saves = checkpoint.state.saves
        self._emit(
            CheckpointSaved(
                step=checkpoint.step, path=str(path), role=role, bytes=size, seconds=seconds, saves=saves
            )
        )

    def _note_success(self, step: int, elapsed_seconds: float) -> None:
        self.saved_step, self._saved_at, self._requested = step, elapsed_seconds, False
        if self._failed_at is not None:
            self._failed_at = None
            self._emit(Notice(level="info", message="checkpoints can be written again"))

    def _note_failure(self, error: Exception, step: int, elapsed_seconds: float) -> None:
        self._tried_at = elapsed_seconds
        if self._failed_at is None:
            self._failed_at, self._failed_step = elapsed_seconds, step
            self._warn(
                f"NO CHECKPOINT COULD BE WRITTEN ({_reason(error)}): training continues in memory and tries "
                f"again; it will stop if the next checkpoint fails too. {self._kept()}"
            )
        elif step > self._failed_step and self._is_scheduled(step, elapsed_seconds, self._failed_at):
            raise self._no_room(error) from error

    def _no_room(self, error: Exception) -> ResourceError:
        return ResourceError(
            f"no checkpoint could be written in {self._run.path}: {_reason(error)}; {self._kept()}",
            "free some disk space or repair the folder, then continue with "
            f"`cpulm resume {typed(self._run.path)}`",
        )

    def _kept(self) -> str:
        kept = self._run.checkpoints()
        if not kept:
            return "there is no checkpoint on the disk"
        return f"the newest checkpoint on the disk is {kept[0]}, of step {self.saved_step}"

    def _warn_of_cost(self, elapsed_seconds: float) -> None:
        part = self._spent_seconds / max(elapsed_seconds, 1e-9)
        if part > _MAX_COST and elapsed_seconds > 10 * self._settings.every and not self._warned_of_cost:
            self._warned_of_cost = True
            self._warn(
                f"checkpoints take {part:.1%} of this run's time; a longer --checkpoint-every lowers that"
            )

    def _warn(self, message: str) -> None:
        self._emit(Notice(level="warning", message=message))


def _reason(error: Exception) -> str:
    if isinstance(error, ResourceError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
