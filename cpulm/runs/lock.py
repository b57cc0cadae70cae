"""One process trains in a run's folder, and others can see which.

Two things together make the lock. The operating system's own lock on the file ``lock`` decides between
processes that come at the same moment, and is gone with its process however that ends. The line in the
file says who it is: for the message, for other commands, and for file systems whose locks do not reach
from machine to machine.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cpulm.errors import ResourceError, SettingsError
from cpulm.run_dir import RunDir
from cpulm.system import process
from cpulm.typed_json import from_record

_PATIENCE_SECONDS = 2.0
"""How long to wait for a process that has the lock and has not said yet who it is, or is just ending."""
_LOOK_SECONDS = 0.05
_MOST_BYTES = 4096
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK, errno.EWOULDBLOCK)
_BEYOND_THE_LINE = 2**30
"""Where Windows locks a byte: what is locked there cannot be read by others."""


@dataclass(frozen=True)
class Holder:
    """The process that a lock names.

    ``started`` tells it apart from others with its number, ``since`` is when it took the lock, in seconds
    since the epoch. ``here`` is False for a process of another machine, of which nothing can be known:
    it counts as alive.
    """

    pid: int
    host: str
    started: str
    since: float
    here: bool
    alive: bool


@dataclass(frozen=True)
class _Line:
    """What stands in the file. ``inode`` is the file's: in a copy of the folder the line means nobody."""

    pid: int
    host: str
    boot: str
    table: str
    started: str
    since: float
    inode: int


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Hold the run's folder while the block lasts, so that nobody else trains in it.

    The lock of a process that is gone is taken over. The file stays when the block ends, empty.

    Raises:
        SettingsError: where another process holds it, or the folder cannot be written.
        ResourceError: where the disk has no room for the file.
    """
    descriptor = _open(run)
    try:
        _take(descriptor, run)
        try:
            yield
        finally:
            with suppress(OSError):  # a line that stays names a process that will be gone
                _write(descriptor, b"")
    finally:
        os.close(descriptor)


def holder(run: RunDir) -> Holder | None:
    """The process that the run's lock names; None where nobody holds it or held it to a bad end."""
    return _holder(run, lambda: _is_free(run.lock))


def _take(descriptor: int, run: RunDir) -> None:
    """Lock the file, see that its line names nobody who lives, and put this process there."""
    patience = time.monotonic() + _PATIENCE_SECONDS
    while not _lock(descriptor):
        other = holder(run)
        if other is not None and other.alive:
            raise _held(run, other)
        if time.monotonic() > patience:
            raise SettingsError(
                f"another process holds {run.lock} and does not say which it is",
                f"look for another cpulm that trains in {run.path}, and end it",
            )
        time.sleep(_LOOK_SECONDS)
    # Nobody else has the file's lock: a holder in another container of this machine is gone.
    other = _holder(run, lambda: True)
    if other is not None and other.alive:
        raise _held(run, other)
    try:
        _write(descriptor, json.dumps(asdict(_own_line(descriptor))).encode() + b"\n")
    except OSError as error:
        raise ResourceError(f"cannot write {run.lock}: {error.strerror}", "free some disk space") from error


def _held(run: RunDir, other: Holder) -> SettingsError:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(other.since))
    if other.here:
        return SettingsError(
            f"{run.path} is being trained already, by process {other.pid} on {other.host} since {since}",
            f"see it with `cpulm watch {run.path}`, stop it with `cpulm stop {run.path}`",
        )
    return SettingsError(
        f"{run.path} is locked by process {other.pid} on another machine, {other.host}, since {since}",
        f"if nothing trains there any more, remove {run.lock}",
    )


def _own_line(descriptor: int) -> _Line:
    pid = os.getpid()
    return _Line(
        pid=pid,
        host=process.host(),
        boot=process.boot(),
        table=process.process_table(),
        started=process.started(pid) or "",
        since=time.time(),
        inode=os.fstat(descriptor).st_ino,
    )


def _holder(run: RunDir, is_free: Callable[[], bool]) -> Holder | None:
    line = _read(run.lock)
    if line is None:
        return None
    here, alive = _judge(line, is_free)
    return Holder(line.pid, line.host, line.started, line.since, here, alive)


def _judge(line: _Line, is_free: Callable[[], bool]) -> tuple[bool, bool]:
    """Whether the process of a line is of this machine, and whether it lives."""
    if line.table == process.process_table():
        return True, process.is_running(line.pid, line.started)
    if line.boot and line.boot == process.boot():
        # A container on this machine: its process numbers mean nothing here, the file's lock does.
        return True, not is_free()
    if line.host == process.host():
        return True, False  # the machine was started again since
    return False, True


def _read(path: Path) -> _Line | None:
    """The line in the file; None where there is none, or a damaged one, or one copied from elsewhere."""
    try:
        with path.open("rb") as file:
            record = json.loads(file.readline(_MOST_BYTES))
            inode = os.fstat(file.fileno()).st_ino
        line = from_record(_Line, record)
    except (OSError, ValueError):
        return None
    return line if line.inode == inode else None


def _write(descriptor: int, content: bytes) -> None:
    """Make ``content`` all that the file holds. The end goes last: a reader never meets a half line."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, content)
    os.ftruncate(descriptor, len(content))


def _open(run: RunDir) -> int:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
    try:
        return os.open(run.lock, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no room to write {run.lock}", "free some disk space") from error
        raise SettingsError(
            f"cannot write in {run.path}: {run.lock.name}: {error.strerror}",
            "make the folder writable, or copy the run to another place and go on there",
        ) from error


def _is_free(path: Path) -> bool:
    """Whether nobody has the operating system's lock on the file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return _lock(descriptor)
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        """Take the operating system's lock; False where another process has it."""
        os.lseek(descriptor, _BEYOND_THE_LINE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        """Take the operating system's lock; False where another process has it.

        Where a file system knows no locks, the line in the file decides alone.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _TAKEN
        return True
