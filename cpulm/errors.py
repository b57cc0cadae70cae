"""Errors that a user can cause or solve: one message, one hint, one exit code.

Anything else that escapes is a bug and keeps its traceback. ``cpulm.cli.main`` turns these errors into text
and an exit code.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpulm import exit_codes
from cpulm.address_space import more_memory

_OUT_OF_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory"),
    *("bad alloc", "bad_alloc", "can't start new thread", "failed to map segment"),
)
"""Parts of the messages of torch and the C library on the systems and devices that torch supports."""


def out_of_memory(error: BaseException) -> str:
    """What ``error`` says if it means that the system refused memory; else empty."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return lines[0] if lines else "none is left"
    if not isinstance(error, (RuntimeError, OSError, ImportError)):
        return ""
    return next((line for line in lines if any(words in line.lower() for words in _OUT_OF_MEMORY)), "")


class CpulmError(Exception):
    """A problem that the user can act on.

    Args:
        message: what is wrong, naming the thing and the value.
        hint: what to do about it, in one sentence or command.
    """

    exit_code = exit_codes.BUG

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(CpulmError):
    """A flag, a setting or a combination of them is wrong."""

    exit_code = exit_codes.SETTINGS


class DataError(CpulmError):
    """Text, token files or a checkpoint cannot be used."""

    exit_code = exit_codes.DATA


class DivergedError(CpulmError):
    """A loss or gradient is not finite, or the loss jumped up and stayed there."""

    exit_code = exit_codes.DIVERGED


class ResourceError(CpulmError):
    """There is not enough disk space or memory."""

    exit_code = exit_codes.RESOURCES


class StoppedError(CpulmError):
    """The run was stopped on purpose, with everything saved: it can be resumed."""

    exit_code = exit_codes.STOPPED


class LostPeerError(CpulmError):
    """Another process of the run has vanished: killed, suspended, or cut off. What was saved is safe."""

    exit_code = exit_codes.LOST

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint or "start it again: it continues from its last checkpoint")


class AbortedError(CpulmError):
    """The user interrupted a second time, and nothing more was saved."""

    exit_code = exit_codes.ABORTED


def error_of_code(code: int, message: str, hint: str) -> CpulmError:
    """Return the error of another process that ended with ``code``."""
    kinds = (
        SettingsError,
        DataError,
        DivergedError,
        ResourceError,
        StoppedError,
        LostPeerError,
        AbortedError,
    )
    for kind in kinds:
        if kind.exit_code == code:
            return kind(message, hint)
    return LostPeerError(f"{message} (exit code {code})", hint)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""Only writing meets these, and opening more files than the system allows."""


@contextmanager
def memory_errors(when: str, otherwise: str) -> Iterator[None]:
    """Turn what Python, torch and the system raise when memory runs out into ResourceError.

    Args:
        when: in words, such as ``while the model is built``.
        otherwise: what the user can do beside giving the process more memory, in words.
    """
    try:
        yield
    except Exception as error:
        if why := out_of_memory(error):
            raise ResourceError(f"out of memory {when}: {why}", f"{more_memory()}, or {otherwise}") from error
        raise


def of_the_system(error: Exception) -> CpulmError | None:
    """Return the problem of the user's system behind an error that nobody translated; None if it is a bug.

    That is memory that the system refused, or a file of the user's that it did not let this process use.
    """
    if why := out_of_memory(error):
        return ResourceError(f"out of memory: {why}", f"{more_memory()}, or use a smaller model or batch")
    if not isinstance(error, OSError) or not isinstance(error.filename, (str, bytes, os.PathLike)):
        return None
    path = Path(os.fsdecode(error.filename))
    if Path(__file__).parent in path.parents:
        return None
    message = f"cannot use {path}: {error.strerror}"
    is_refusal = error.errno in (errno.EACCES, errno.EPERM)
    if error.errno in _NO_ROOM or (is_refusal and _could_be_read(path)):
        return ResourceError(message, "check the free space and the permissions, or choose another folder")
    return DataError(message, "check the path, and the permissions of the folders above it")


def _could_be_read(path: Path) -> bool:
    """Whether the system would let this process read ``path``, if it is there: then it refused to write."""
    return os.access(path, os.R_OK) if os.path.lexists(path) else os.access(path.parent, os.R_OK | os.X_OK)
