"""Stopping on purpose: the first request is noted, the second leaves at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from cpulm.errors import AbortedError

# SIGHUP comes when a terminal is closed, SIGBREAK is Ctrl-Break on Windows; not every system has both.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


class StopRequest:
    """While entered, turns stop signals into a flag that the work in hand looks at.

    Call the object to ask whether a stop was requested. The second Ctrl-C raises AbortedError where
    the main thread is.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __call__(self) -> bool:
        return self.signal_name is not None

    def __enter__(self) -> StopRequest:
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self() and number == signal.SIGINT:
            raise AbortedError("aborted; the last checkpoint is intact", "go on with `cpulm resume`")
        self.signal_name = signal.Signals(number).name
