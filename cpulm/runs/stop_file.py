"""A request to stop that comes from another terminal: the file ``stop`` in the run's folder.

A file and no signal, because a file reaches every system alike, also a process on another machine that
shares the disk, and because the supervisor of a night reads it too and then starts nothing again.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cpulm.errors import ResourceError, SettingsError
from cpulm.run_dir import RunDir

_LOOK_SECONDS = 1.0


def ask_to_stop(run: RunDir) -> None:
    """Leave the request; it stands until the run is resumed.

    Raises:
        SettingsError: where the folder cannot be written.
        ResourceError: where the disk is full.
    """
    try:
        run.stop.write_text(time.strftime("cpulm stop, %Y-%m-%d %H:%M:%S\n"), encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no room to write {run.stop}", "free some disk space") from error
        raise SettingsError(
            f"cannot write {run.stop}: {error.strerror}",
            "ask as the user whom the run belongs to, or press Ctrl-C where it runs",
        ) from error


@contextmanager
def watch_for_stop(run: RunDir, request: Callable[[str], None]) -> Iterator[None]:
    """Call ``request("cpulm stop")`` once, from a thread of its own, when somebody asks the run to stop.

    The folder is looked at every second. A request that stands there already counts: whoever holds the
    run's lock takes an old one away before.
    """
    over = threading.Event()

    def look() -> None:
        while not _is_asked(run):
            if over.wait(_LOOK_SECONDS):
                return
        request("cpulm stop")

    thread = threading.Thread(target=look, name="cpulm-stop-file", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_asked(run: RunDir) -> bool:
    try:
        run.stop.stat()
    except OSError:  # also where a shared disk is away for a moment
        return False
    return True
