"""Writes files whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cpulm.errors import ResourceError


def flush_to_disk(file: IO[bytes]) -> None:
    """Return once the operating system has written the file's bytes to disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable; Windows neither has nor needs such a call.

    Some network and user-space file systems refuse to flush a folder; the rename has happened anyway, so
    this is not an error.
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that is renamed to ``path`` when the block ends without an error.

    Until then it is a hidden temporary sibling, and the file at ``path`` stays intact. After an error the
    sibling is removed.

    Raises:
        ResourceError: if the disk is full, a quota is used up or the file is too large for the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with _errors_name(path, temporary):
            with temporary.open("w+b") as file:
                yield file
                flush_to_disk(file)
            _rename(temporary, path)
            flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _errors_name(path: Path, temporary: Path) -> Iterator[None]:
    """Errors are of ``path``, and not of the temporary file or folder that nobody knows."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(temporary):
            error.filename = str(path)
        # numpy's tofile gives no number: "5632 requested and 3192 written".
        cut_short = error.errno is None and " requested and " in str(error)
        if cut_short or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                f"no space to write {path}: {error.strerror or os.strerror(errno.ENOSPC)}",
                "free some disk space, or choose another folder",
            ) from error
        raise


def _rename(temporary: Path, path: Path) -> None:
    """Rename, with retries on Windows, which refuses while a virus scanner or a reader holds ``path``."""
    for _ in range(20 if os.name == "nt" else 0):
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(0.1)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all.

    The bytes of a file's name that are not UTF-8 (``surrogateescape``) are written as ``\\udcff``.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of ``path`` when the block ends without an error.

    Until then it is a hidden temporary sibling, and what is at ``path`` stays intact. After an error the
    sibling is removed. Files in it are flushed with it.

    Raises:
        ResourceError: as :func:`replacing`.
    """
    beside = f".{path.name}.{os.getpid()}-{threading.get_ident()}"
    temporary, old = path.with_name(f"{beside}.tmp"), path.with_name(f"{beside}.old.tmp")
    try:
        with _errors_name(path, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
                with file.open("rb+") as written:
                    flush_to_disk(written)
            flush_folder(temporary)
            if path.exists():
                _rename(path, old)
            try:
                _rename(temporary, path)
            except OSError:
                if old.exists():
                    _rename(old, path)
                raise
            flush_folder(path.parent)
    finally:
        for left in (temporary, old):
            if left.is_symlink():
                left.unlink()
            shutil.rmtree(left, ignore_errors=True)
