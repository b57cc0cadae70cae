"""The log of a night: the supervisor's own lines and its processes' output, in one file of bounded size."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from cpulm.regular_file import open_own

LIMIT_BYTES = 4 * 2**20


class Log:
    """A text file that this process appends to, and those that inherit ``file``.

    Beyond ``limit_bytes`` its content is moved to ``NAME.1``, so that there are at most two files of about
    that size. The file is emptied in place: other processes can keep writing into it.
    """

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.path, self._limit = path, limit_bytes
        self.file = os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab", buffering=0)

    def write_line(self, text: str) -> None:
        """Append a line with the time; a full disk must not end the night."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} overnight: {text}\n"
        with contextlib.suppress(OSError):
            self.file.write(line.encode("utf-8", "backslashreplace"))

    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self.file.fileno()).st_size

    def move_to(self, path: Path) -> None:
        """Rename the file within the same file system, if the system allows that for an open file.

        Windows does not while a process writes: the next call tries again.
        """
        with contextlib.suppress(OSError):
            self.path.replace(path)
            self.path = path

    def rotate(self, *, alone: bool) -> None:
        """Empty the file if it is beyond the limit.

        Args:
            alone: whether no other process has the file open; Windows lets a file be emptied only then.
        """
        with contextlib.suppress(OSError):
            if self.size() <= self._limit or (os.name == "nt" and not alone):
                return
            shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
            self.file.truncate(0)
            self.file.seek(0)
