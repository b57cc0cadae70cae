"""Errors that a user can cause or solve: one message, one hint, one exit code.

Anything else that escapes is a bug and keeps its traceback. ``cpulm.cli.main`` turns these errors into text
and an exit code.
"""

from __future__ import annotations

import errno

from cpulm import exit_codes

_OUT_OF_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory"),
    *("bad alloc", "bad_alloc", "can't start new thread"),
)
"""Parts of the messages of torch and the C library on the systems and devices that torch supports."""


def out_of_memory(error: BaseException) -> str:
    """What ``error`` says if it means that the system refused memory; else empty."""
    message = (str(error).splitlines() or ["none is left"])[0]
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return message
    of_torch = isinstance(error, (RuntimeError, OSError, ImportError))
    return message if of_torch and any(words in message.lower() for words in _OUT_OF_MEMORY) else ""


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


class AbortedError(CpulmError):
    """The user interrupted a second time, and nothing more was saved."""

    exit_code = exit_codes.ABORTED
