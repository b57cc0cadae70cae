"""The lock of a run: only one process trains in its folder, and others can see which.

It has two parts. The operating system's lock on the file ``lock`` decides between processes that start at the
same moment, and ends with its process in any case. The line in the file names the holder: for messages, for
other commands, and for file systems whose locks do not work between machines.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cpulm.command import typed
from cpulm.errors import ResourceError, SettingsError
from cpulm.file_lock import lock_file
from cpulm.regular_file import open_own, open_regular
from cpulm.run_dir import RunDir
from cpulm.system import process
from cpulm.typed_json import from_record, parse_json

_PATIENCE_SECONDS = 2.0
"""How long to wait for a holder that has not written its line yet, or is just ending."""
_POLL_SECONDS = 0.05
_MOST_BYTES = 4096


@dataclass(frozen=True)
class Holder:
    """The process that a lock names.

    ``started`` distinguishes it from others with the same number. ``since`` is when it took the lock, in
    seconds since the epoch. ``here`` is False for a process on another machine, which counts as alive because
    it cannot be checked.
    """

    pid: int
    host: str
    started: str
    since: float
    here: bool
    alive: bool


@dataclass(frozen=True)
class _Line:
    """The content of the file. ``inode`` is that of the file: in a copy of the folder the line is void."""

    pid: int
    host: str
    boot: str
    table: str
    started: str
    since: float
    inode: int


@contextmanager
def locked(run: RunDir, *, to_delete: bool = False) -> Iterator[None]:
    """Lock the run's folder while the block lasts, so that no other process trains in it.

    The lock of a process that has ended is taken over. When the block ends, the file stays, empty.

    Args:
        to_delete: files are deleted, for which a full disk is a reason: it needs no room for its line.

    Raises:
        SettingsError: another process holds the lock, or the folder cannot be written.
        ResourceError: the disk has no room for the file.
    """
    try:
        descriptor = _open(run)
    except ResourceError:
        if not to_delete:
            raise
        yield  # without the file nobody trains, and nobody can begin to before something is deleted
        return
    try:
        _acquire(descriptor, run, needs_line=not to_delete)
        try:
            yield
        finally:
            with suppress(OSError):  # a line that stays names a process that has ended
                _write(descriptor, b"")
    finally:
        os.close(descriptor)


def holder(run: RunDir) -> Holder | None:
    """The process that the run's lock names, alive or killed; None if no process does or did hold it."""
    return _holder(run, lambda: _is_free(run.lock))


def _acquire(descriptor: int, run: RunDir, *, needs_line: bool) -> None:
    """Lock the file, check that its line names no living process, and write this process's line."""
    patience = time.monotonic() + _PATIENCE_SECONDS
    while not lock_file(descriptor):
        other = holder(run)
        if other is not None and other.alive:
            raise _held_error(run, other)
        if time.monotonic() > patience:
            raise SettingsError(
                f"another process holds {run.lock}; its process id is unknown",
                f"find the cpulm process that trains in {run.path}, and end it",
            )
        time.sleep(_POLL_SECONDS)
    # No other process has the file's lock: a holder in another container of this machine has ended.
    other = _holder(run, lambda: True)
    if other is not None and other.alive:
        raise _held_error(run, other)
    try:
        _write(descriptor, json.dumps(asdict(_own_line(descriptor))).encode() + b"\n")
    except OSError as error:
        if needs_line:
            raise ResourceError(
                f"cannot write {run.lock}: {error.strerror}", "free some disk space"
            ) from error


def _held_error(run: RunDir, other: Holder) -> SettingsError:
    place, since = typed(run.path), time.strftime("%Y-%m-%d %H:%M", time.localtime(other.since))
    if other.here:
        return SettingsError(
            f"{run.path} is already being trained by process {other.pid} on {other.host} since {since}",
            f"see it with `cpulm watch {place}`, stop it with `cpulm stop {place}`",
        )
    return SettingsError(
        f"{run.path} is locked by process {other.pid} on another machine, {other.host}, since {since}",
        f"if that process no longer trains, remove {run.lock}",
    )


def _own_line(descriptor: int) -> _Line:
    pid = os.getpid()
    return _Line(
        pid=pid,
        host=process.host_name(),
        boot=process.boot(),
        table=process.pid_namespace(),
        started=process.start_token(pid) or "",
        since=time.time(),
        inode=os.fstat(descriptor).st_ino,
    )


def _holder(run: RunDir, is_free: Callable[[], bool]) -> Holder | None:
    line = _read(run.lock)
    if line is None:
        return None
    here, alive = _locality_and_life(line, is_free)
    return Holder(line.pid, line.host, line.started, line.since, here, alive)


def _locality_and_life(line: _Line, is_free: Callable[[], bool]) -> tuple[bool, bool]:
    """Whether the process of a line is on this machine, and whether it is alive."""
    if line.table == process.pid_namespace():
        return True, process.is_running(line.pid, line.started)
    if line.boot and line.boot == process.boot():
        # A container on this machine: its process numbers mean nothing here, the file's lock does.
        return True, not is_free()
    if line.host == process.host_name():
        return True, False  # the machine was rebooted since
    return False, True


def _read(path: Path) -> _Line | None:
    """The line in the file; None if there is none, or it is damaged or copied from elsewhere."""
    try:
        with open_regular(path) as file:
            record = parse_json(file.readline(_MOST_BYTES))
            inode = os.fstat(file.fileno()).st_ino
        line = from_record(_Line, record)
    except (OSError, ValueError):
        return None
    return line if line.inode == inode else None


def _write(descriptor: int, content: bytes) -> None:
    """Replace the file's content. The file is cut last, so that a reader never sees half a line."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, content)
    os.ftruncate(descriptor, len(content))


def _open(run: RunDir) -> int:
    try:
        return open_own(run.lock, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no room to write {run.lock}", "free some disk space") from error
        raise SettingsError(
            f"cannot write in {run.path}: {run.lock.name}: {error.strerror}",
            "make the folder writable, or copy the run to another place and continue there",
        ) from error


def _is_free(path: Path) -> bool:
    """Whether no process has the operating system's lock on the file."""
    try:
        descriptor = open_own(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return lock_file(descriptor)
    finally:
        os.close(descriptor)
