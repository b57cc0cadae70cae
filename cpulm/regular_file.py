"""Opens files that may be other than they seem: a pipe, a socket, a device or a link in a file's place.

Opening a pipe waits for its other end, a device may have no end, and writing through a link changes a file
elsewhere. Everything here answers at once, and with an OSError whose ``strerror`` can be shown.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO, TextIO
from weakref import WeakKeyDictionary

_PIECE_BYTES = 1 << 20
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_PLAIN = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_KINDS = {
    stat.S_IFIFO: "it is a pipe, not a file",
    stat.S_IFSOCK: "it is a socket, not a file",
    stat.S_IFCHR: "it is a device, not a file",
    stat.S_IFBLK: "it is a device, not a file",
}
_read_once: dict[tuple[int, int], bytes] = {}
"""By device and inode: what this process has read from pipes."""
_read_stdin: WeakKeyDictionary[TextIO, bytes] = WeakKeyDictionary()


def open_regular(path: Path) -> BinaryIO:
    """Open the regular file at ``path``, or one that it links to, to read bytes.

    Raises:
        OSError: if it cannot be opened, or is not a regular file.
    """
    return os.fdopen(_regular(_open(path, os.O_RDONLY), path), "rb")


def open_own(path: Path, flags: int) -> int:
    """Open a file that cpulm writes in place, such as a lock or a log; return its descriptor.

    Args:
        flags: of :func:`os.open`; a new file can be read by all.

    Raises:
        OSError: if it cannot be opened, or is a link or not a regular file.
    """
    try:
        descriptor = _open(path, flags | _NO_LINK)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link to another file", str(path)) from error
        raise
    return _regular(descriptor, path)


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Read a regular file of at most ``most_bytes``.

    Raises:
        OSError: as :func:`open_regular`, or if the file is larger.
    """
    with open_regular(path) as file:
        return _bounded(file, most_bytes, path)


def read_named(path: Path, most_bytes: int) -> bytes:
    """Read what a user named: a file, a pipe, a terminal, or ``-`` for standard input.

    A pipe, or standard input, that is read again gives the same bytes.

    Raises:
        OSError: as :func:`open_named`, or if it is larger than ``most_bytes``.
    """
    if str(path) == "-":
        if sys.stdin is None:
            raise OSError(errno.EBADF, "standard input is closed", str(path))
        if sys.stdin not in _read_stdin:
            _read_stdin[sys.stdin] = _bounded(sys.stdin.buffer, most_bytes, path)
        return _read_stdin[sys.stdin]
    with open_named(path) as file:
        there = os.fstat(file.fileno())
        key = (there.st_dev, there.st_ino)
        if not stat.S_ISFIFO(there.st_mode):
            return _bounded(file, most_bytes, path)
        if key not in _read_once:
            _read_once[key] = _bounded(file, most_bytes, path)
        return _read_once[key]


def open_named(path: Path) -> BinaryIO:
    """Open what a user named, to read bytes: a file, a pipe or a terminal.

    A pipe that nobody has opened to write is empty.

    Raises:
        OSError: if it cannot be opened, or is a folder or another device.
    """
    descriptor = _open(path, os.O_RDONLY)
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
        _regular(descriptor, path)
    elif os.name != "nt":
        os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | _AT_ONCE | _PLAIN, 0o644)
    except ValueError as error:  # a NUL character, which no path holds
        raise OSError(errno.EINVAL, str(error), str(path)) from error


def _bounded(file: BinaryIO, most_bytes: int, path: Path) -> bytes:
    data = bytearray()
    # In pieces: Python reserves the memory of all that it is asked for, 1 GiB for a tokenizer of 2 MB.
    while len(data) <= most_bytes and (piece := file.read(_PIECE_BYTES)):
        data += piece
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes:,} bytes", str(path))
    return bytes(data)


def _regular(descriptor: int, path: Path) -> int:
    try:
        _require_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(there: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(there.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(there.st_mode):
        raise OSError(errno.EINVAL, _KINDS.get(stat.S_IFMT(there.st_mode), "it is not a file"), str(path))
