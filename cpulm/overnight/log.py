"""The log of a night: what the supervisor says and what its processes write, in one file of bounded size."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

LIMIT_BYTES = 4 * 2**20


class Log:
    """A text file that is appended to, by this process and by the ones that inherit ``file``.

    Past ``limit_bytes`` its content becomes ``NAME.1`` and it begins anew, so that two files of about that
    size are the most there is. It is emptied in place: the processes that write into it go on doing so.
    """

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.path, self._limit = path, limit_bytes
        self.file = path.open("ab", buffering=0)

    def say(self, text: str) -> None:
        """Add a line with the time; a full disk must not end the night."""
        with contextlib.suppress(OSError):
            self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} overnight: {text}\n".encode())

    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self.file.fileno()).st_size

    def move_to(self, path: Path) -> None:
        """Take another name in the same file system, where the system lets go of an open file's name.

        Windows does not while a process writes: then the next call tries again.
        """
        with contextlib.suppress(OSError):
            self.path.replace(path)
            self.path = path

    def make_room(self, *, alone: bool) -> None:
        """Begin anew where the limit is passed.

        Args:
            alone: whether no other process has the file open; Windows lets a file be emptied only then.
        """
        with contextlib.suppress(OSError):
            if self.size() <= self._limit or (os.name == "nt" and not alone):
                return
            shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
            self.file.truncate(0)
            self.file.seek(0)
