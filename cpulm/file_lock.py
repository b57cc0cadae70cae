"""The operating system's lock on an open file: it ends with its process in any case."""

from __future__ import annotations

import errno
import os
import sys

_LOCKED = (errno.EACCES, errno.EAGAIN, errno.EDEADLK, errno.EWOULDBLOCK)
_OFFSET = 2**30
"""The byte that Windows locks: other processes cannot read locked bytes, so it lies behind any content."""

if sys.platform == "win32":
    import msvcrt

    def lock_file(descriptor: int) -> bool:
        """Take the lock; False if another process has it."""
        os.lseek(descriptor, _OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in _LOCKED:
                return False
            raise
        return True

else:
    import fcntl

    def lock_file(descriptor: int) -> bool:
        """Take the lock; False if another process has it. On a file system without locks none has."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _LOCKED
        return True
