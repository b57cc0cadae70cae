"""What a user can be told: one message, one hint, one exit code.

Raise one of these for anything a user can cause or mend. Anything else that escapes is a bug and
keeps its traceback. The boundary that turns them into text and an exit code is ``cpulm.cli.main``.
"""

from __future__ import annotations


class CpulmError(Exception):
    """A problem the user can act on.

    Args:
        message: what is wrong, naming the thing and the value.
        hint: what to do about it, in one sentence or command.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(CpulmError):
    """A flag, a setting or a combination of them is wrong."""

    exit_code = 2


class DataError(CpulmError):
    """Text, token files or a checkpoint cannot be used."""

    exit_code = 3


class DivergedError(CpulmError):
    """Training left the finite numbers."""

    exit_code = 4


class ResourceError(CpulmError):
    """Disk or memory is not enough."""

    exit_code = 5


class StoppedError(CpulmError):
    """Stopped on purpose, with everything saved: the run can be resumed."""

    exit_code = 75


class AbortedError(CpulmError):
    """Left at once on the user's second request."""

    exit_code = 130
