"""How much of the processor other programs use."""

from __future__ import annotations

import time

import psutil

SHORTEST_SECONDS = 0.5
"""Between two readings: the system counts in hundredths of a second."""


class OthersUse:
    """Processors that other programs were busy on, on average since the reading before.

    What a hypervisor gives to other machines counts as well: it cannot be used here either.
    """

    def __init__(self) -> None:
        self._at, self._busy, self._own = _reading()

    def read(self) -> float | None:
        """Processors, 0 or more; None within :data:`SHORTEST_SECONDS` of the reading before."""
        if time.monotonic() - self._at < SHORTEST_SECONDS:
            return None
        at, busy, own = _reading()
        others = (busy - self._busy - (own - self._own)) / (at - self._at)
        self._at, self._busy, self._own = at, busy, own
        return max(0.0, others)


def _reading() -> tuple[float, float, float]:
    """Seconds: of the clock, of all processors at work, of this process at work."""
    times = psutil.cpu_times()._asdict()
    for name in ("idle", "iowait", "guest", "guest_nice"):  # guests are counted in user and nice already
        times.pop(name, None)
    return time.monotonic(), sum(times.values()), time.process_time()
