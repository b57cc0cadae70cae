"""Keeps what can be read only once, such as a pipe, and reads files no further than they were when found."""

from __future__ import annotations

import hashlib
import io
import os
import select
import stat
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any

from cpulm.cache_dir import expand_home
from cpulm.errors import DataError, ResourceError
from cpulm.events import Listener
from cpulm.progress import Stage

STDIN = ("-", "/dev/stdin", "/dev/fd/0")
"""The names of standard input."""

_CHUNK_BYTES = 1 << 16
_POLL_SECONDS = 0.1
_spools: dict[tuple[int, int], Spool] = {}
"""By device and inode: all that this process has read. A pipe that is named again means the same text."""


class Spool:
    """The content of a source that can be read only once, in a temporary file without a name.

    Attributes:
        file: the content; its position is shared, so it is read under ``lock``.
        size: in bytes.
        digest: of the content.
    """

    def __init__(self, source: IO[bytes], name: str, stage: Stage) -> None:
        """Read ``source`` to its end.

        Raises:
            ResourceError: if the temporary folder is full.
            StoppedError: if the stage was stopped.
        """
        self.lock = threading.Lock()
        self.size = 0
        hasher = hashlib.blake2b(digest_size=16)
        try:
            self.file: IO[bytes] = tempfile.TemporaryFile(prefix="cpulm-")  # noqa: SIM115 - open while this lives
            while chunk := _next_bytes(source, stage):
                self.file.write(chunk)
                hasher.update(chunk)
                self.size += len(chunk)
                stage.advance(len(chunk))
            self.file.flush()
        except OSError as error:
            raise ResourceError(
                f"cannot keep the text of {name} in {tempfile.gettempdir()}: {error.strerror}",
                "free some disk space, or name another folder in TMPDIR",
            ) from error
        self.digest = hasher.hexdigest()


def _next_bytes(source: IO[bytes], stage: Stage) -> bytes:
    """The next bytes, empty at the end; a stop is noticed while none come."""
    while True:
        # On Windows only sockets can be waited for.
        while os.name != "nt" and not select.select([source], [], [], _POLL_SECONDS)[0]:
            stage.advance()
        data: bytes | None = source.read(_CHUNK_BYTES)
        if data is not None:
            return data


def can_be_read_once(source: str, there: os.stat_result | None) -> bool:
    """Whether ``source`` is standard input, a pipe, a terminal, or a file of /proc of unknown size."""
    if source in STDIN or there is None:
        return source in STDIN
    if stat.S_ISREG(there.st_mode):
        return there.st_size == 0 and source.startswith("/proc/")
    return not stat.S_ISDIR(there.st_mode)


def spool(source: str, emit: Listener, should_stop: Callable[[], bool]) -> Spool:
    """Read ``source`` to its end, or return what was read before.

    Raises:
        DataError: if it cannot be read, or is a device, which may have no end.
        ResourceError: if the temporary folder is full.
        StoppedError: if ``should_stop`` returned True.
    """
    try:
        if source in STDIN:
            handle = os.dup(0)
        else:
            # A named pipe that nobody writes to would block here, where no stop is noticed.
            handle = os.open(expand_home(source), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb", buffering=0) as stream:
            there = os.fstat(handle)
            if stat.S_ISCHR(there.st_mode) and not stream.isatty() and source not in STDIN:
                raise DataError(f"{source} is a device", "give text: a file, or a pipe")
            key = (there.st_dev, there.st_ino)
            if key not in _spools:
                with Stage(f"reading {source}", None, "bytes", emit, should_stop) as stage:
                    _spools[key] = Spool(stream, source, stage)
            return _spools[key]
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror}", "check its permissions") from error


class FileBytes(io.RawIOBase):
    """``size`` bytes of a file from ``begin`` on, whatever is added to it meanwhile."""

    def __init__(
        self, name: str, file: IO[bytes], size: int, begin: int = 0, shared: threading.Lock | None = None
    ) -> None:
        """Take ``file``, which is closed with this one unless it is shared under a lock."""
        self._name = name
        self._file = file
        self._begin = begin
        self._size = size
        self._shared = shared
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        with self._shared or threading.Lock():
            self._file.seek(self._begin + self._position)
            data = self._file.read(wanted)
        if not data:
            raise DataError(
                f"{self._name} became shorter while it was read", "run the command again when it is complete"
            )
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if self._shared is None:
            self._file.close()
        super().close()
