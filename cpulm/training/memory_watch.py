"""Watches memory during a run: an early warning, then a checkpoint before the kernel kills the process."""

from __future__ import annotations

from collections.abc import Callable

from cpulm.events import Listener, MachineSampled, Notice
from cpulm.units import format_bytes

WARN_AT = 0.85
SAVE_AT = 0.93
"""Fractions of this machine's memory, or of the container's limit, in use by all programs together."""
_CALM_BELOW = 0.80
"""After memory in use fell below this fraction, the next rise gives a new warning."""


class MemoryWatch:
    """Receives the monitor's samples; warns once per rise, then requests a checkpoint when memory is full.

    Args:
        emit: receives the warnings.
        request_checkpoint: makes a checkpoint due.
        smaller_batch: flags of a run that needs less memory, for the warning; empty if there are none.
    """

    def __init__(self, emit: Listener, request_checkpoint: Callable[[], None], smaller_batch: str) -> None:
        self._emit = emit
        self._request_checkpoint = request_checkpoint
        self._smaller_batch = smaller_batch
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
            self._request_checkpoint()
            self._emit(Notice(level="warning", message=f"memory is {part:.0%} full: saving a checkpoint now"))

    def _warning(self, event: MachineSampled, part: float) -> str:
        own, used = event.process_bytes, event.memory_used_bytes
        message = (
            f"memory is {part:.0%} full: {format_bytes(used)} of {format_bytes(event.memory_total_bytes)} "
            f"are used, {format_bytes(own)} of that by this run"
        )
        if own < used / 2 or not self._smaller_batch:
            return f"{message}; close other programs"
        return f"{message}; close other programs, or start a smaller run: {self._smaller_batch}"
