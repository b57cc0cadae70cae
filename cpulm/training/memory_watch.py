"""Memory while a run goes: a warning in time, and a checkpoint before the kernel would end the process."""

from __future__ import annotations

from collections.abc import Callable

from cpulm.events import Listener, MachineSampled, Notice
from cpulm.units import format_bytes

WARN_AT = 0.85
SAVE_AT = 0.93
"""Parts of the memory there is, the container's limit included, that are in use by all programs."""
_CALM_BELOW = 0.80
"""Falling below it makes the next rise worth a word again."""


class MemoryWatch:
    """Hears the monitor's samples; warns once per rise, and asks for a checkpoint where it gets tight.

    Args:
        emit: receives the warnings.
        save_soon: makes a checkpoint due.
        smaller: flags of a run that would take less, for the warning; empty where there are none.
    """

    def __init__(self, emit: Listener, save_soon: Callable[[], None], smaller: str) -> None:
        self._emit = emit
        self._save_soon = save_soon
        self._smaller = smaller
        self._warned = False
        self._saved = False

    def __call__(self, event: MachineSampled) -> None:
        if event.memory_total_bytes <= 0:
            return
        part = event.memory_used_bytes / event.memory_total_bytes
        if part < _CALM_BELOW:
            self._warned = self._saved = False
        if part >= WARN_AT and not self._warned:
            self._warned = True
            self._emit(Notice(level="warning", message=self._warning(event, part)))
        if part >= SAVE_AT and not self._saved:
            self._saved = True
            self._save_soon()
            self._emit(
                Notice(level="warning", message=f"memory is {part:.0%} full: saving a checkpoint at once")
            )

    def _warning(self, event: MachineSampled, part: float) -> str:
        own, used = event.process_bytes, event.memory_used_bytes
        message = (
            f"memory is {part:.0%} full: {format_bytes(used)} of {format_bytes(event.memory_total_bytes)} "
            f"are used, {format_bytes(own)} of them by this run"
        )
        if own < used / 2 or not self._smaller:
            return f"{message}; close other programs"
        return f"{message}; close other programs, or start a smaller run: {self._smaller}"
