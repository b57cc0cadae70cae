"""A request to stop from another terminal: the file ``stop`` in the run's folder.

It is a file and not a signal because a file works the same on every system, reaches a process on another
machine that shares the disk, and is read by the supervisor of a night, which then starts nothing again.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cpulm.atomic import write_text
from cpulm.errors import SettingsError
from cpulm.run_dir import RunDir

_POLL_SECONDS = 0.25


def request_stop(run: RunDir) -> None:
    """Request the run to stop; the request holds until the run is resumed.

    Raises:
        SettingsError: the folder cannot be written.
        ResourceError: the disk has no room even for an empty file.
    """
    try:
        write_text(run.stop, "")  # which a full disk has room for
    except OSError as error:
        raise SettingsError(
            f"cannot write {run.stop}: {error.strerror}",
            "run this as the owner of the run, or press Ctrl-C in its terminal",
        ) from error


@contextmanager
def watch_for_stop(run: RunDir, request: Callable[[str], None]) -> Iterator[None]:
    """Call ``request("cpulm stop")`` once, from another thread, when the run is requested to stop.

    The folder is polled four times a second. A request that is there already counts: the holder of the run's
    lock removes an old one before.
    """
    over = threading.Event()

    def look() -> None:
        while not is_stop_requested(run):
            if over.wait(_POLL_SECONDS):
                return
        request("cpulm stop")

    thread = threading.Thread(target=look, name="cpulm-stop-file", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def stop_requested_at(run: RunDir) -> int | None:
    """The time of the request to stop, in nanoseconds; None if there is none: a folder or a pipe is none."""
    try:
        there = run.stop.lstat()
    except OSError:  # a shared disk may also be away for a moment
        return None
    return there.st_mtime_ns if stat.S_ISREG(there.st_mode) else None


def is_stop_requested(run: RunDir) -> bool:
    """Whether the run is requested to stop."""
    return stop_requested_at(run) is not None


def withdraw_stop(run: RunDir) -> None:
    """Remove a request, if there is one."""
    if is_stop_requested(run):
        run.stop.unlink(missing_ok=True)
