"""A long task that reports progress and can be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from cpulm.errors import StoppedError
from cpulm.events import Listener, Progress

_CHECK_SECONDS = 0.1
_REPORT_SECONDS = 0.25


class Stage:
    """Reports progress about four times a second and checks for stop requests, in a ``with`` block.

    Args:
        name: the task's name in the progress display.
        total: the amount of work, None if unknown.
        unit: of ``total``.
        emit: receives Progress events; the last one is marked as finished unless an error ends the stage.
        should_stop: called at the first step and then about ten times a second.
    """

    def __init__(
        self, name: str, total: float | None, unit: str, emit: Listener, should_stop: Callable[[], bool]
    ) -> None:
        self.name = name
        self.done = 0.0
        self._total = total
        self._unit = unit
        self._emit = emit
        self._should_stop = should_stop
        self._checked = float("-inf")
        self._reported = time.monotonic()

    def __enter__(self) -> Stage:
        self._report(finished=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.done = self.done if self._total is None else self._total  # also if some was passed over
            self._report(finished=True)

    def advance(self, amount: float = 0.0) -> None:
        """Add ``amount`` to the completed work.

        Raises:
            StoppedError: if a stop was requested.
        """
        self.done += amount
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        if self._should_stop():
            raise StoppedError(f"while {self.name}; nothing was written", "run the command again")
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._report(finished=False)

    def _report(self, *, finished: bool) -> None:
        done = self.done if self._total is None else min(self.done, self._total)
        self._emit(
            Progress(stage=self.name, done=done, total=self._total, unit=self._unit, finished=finished)
        )
