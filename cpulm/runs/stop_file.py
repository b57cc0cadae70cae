"""A request to stop from another terminal: the file ``stop`` in the run's folder.

It is a file and not a signal because a file works the same on every system, reaches a process on another
machine that shares the disk, and is read by the supervisor of a night, which then starts nothing again.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cpulm.errors import ResourceError, SettingsError
from cpulm.run_dir import RunDir

_POLL_SECONDS = 0.25


def request_stop(run: RunDir) -> None:
    """Request the run to stop; the request holds until the run is resumed.

    Raises:
        SettingsError: the folder cannot be written.
        ResourceError: the disk is full.
    """
    try:
        run.stop.write_text(time.strftime("cpulm stop, %Y-%m-%d %H:%M:%S\n"), encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no room to write {run.stop}", "free some disk space") from error
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
        while not _is_requested(run):
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


def _is_requested(run: RunDir) -> bool:
    try:
        run.stop.stat()
    except OSError:  # a shared disk may also be away for a moment
        return False
    return True
