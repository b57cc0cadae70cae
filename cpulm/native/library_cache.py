"""The folder that keeps compiled libraries: private, checked before every use, and cleaned.

A library's name ends with the digest of its bytes. One that is damaged, or that another user owns or may
write, is not loaded: a flipped bit gives wrong numbers in silence, and a library is a program.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from pathlib import Path

from cpulm.atomic import replacing

PREFIX = "kernels-"
SCRATCH_PREFIX = f".{PREFIX}"
KEPT = 4
"""Libraries in one folder: for other versions of cpulm, other compilers, or other CPUs that share it."""

STALE_SECONDS = 3600.0
"""Age from which a scratch folder belongs to a compilation that was killed: compilers get ten minutes."""


class UnsafeCacheError(Exception):
    """The folder belongs to another user, or is not a folder."""


def make_private(folder: Path) -> None:
    """Create ``folder`` with mode 0700, or take the rights of others to it away.

    Raises:
        UnsafeCacheError: if it is not ours.
        OSError: if it cannot be created.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid():
        raise UnsafeCacheError("it belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


def find(folder: Path, key: str, suffix: str) -> tuple[Path | None, str]:
    """The library that was stored under ``key``, and why one was refused, or an empty string.

    Refused libraries are removed.
    """
    why = ""
    for library in sorted(folder.glob(f"{PREFIX}{key}-*{suffix}")):
        why = _wrong_with(library)
        if not why:
            os.utime(library)  # the last use, by which old ones are removed
            return library, ""
        library.unlink()
    return None, why


def store(folder: Path, key: str, made: Path) -> Path:
    """Keep a copy of the library ``made``, written whole or not at all; old ones are removed.

    Raises:
        ResourceError: if the disk is full.
        OSError: if the folder cannot be written.
    """
    content = made.read_bytes()
    library = folder / name_with_digest(key, content, made.suffix)
    with replacing(library) as file:
        file.write(content)
    _clean(folder)
    return library


def name_of(library: Path) -> str:
    """A library's name without the digest of its bytes."""
    return library.stem.rpartition("-")[0]


def name_with_digest(key: str, content: bytes, suffix: str) -> str:
    """The file name of a library with these bytes."""
    return f"{PREFIX}{key}-{_digest(content)}{suffix}"


def is_damaged(library: Path) -> bool:
    """Whether its bytes are not those that its name gives the digest of.

    Raises:
        OSError: if it cannot be read.
    """
    return not library.stem.endswith(f"-{_digest(library.read_bytes())}")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _wrong_with(library: Path) -> str:
    found = library.lstat()
    if not stat.S_ISREG(found.st_mode):
        return "it is not a file"
    if found.st_uid != os.getuid():
        return "it belongs to another user"
    if stat.S_IMODE(found.st_mode) & 0o022:
        return "other users may write it"
    return "it is damaged" if is_damaged(library) else ""


def _clean(folder: Path) -> None:
    """Remove all but the libraries used last, and what killed compilations left."""
    libraries = sorted(folder.glob(f"{PREFIX}*"), key=_used, reverse=True)
    for library in libraries[KEPT:]:
        library.unlink(missing_ok=True)
    for left in folder.glob(f"{SCRATCH_PREFIX}*"):
        if time.time() - _used(left) > STALE_SECONDS:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _used(path: Path) -> float:
    """When ``path`` was last used or written; 0 if another process has just removed it."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
