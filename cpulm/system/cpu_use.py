"""Which processors this process may use, and how much of them other programs use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil

SHORTEST_SECONDS = 0.5
"""The least time between two readings: the system counts in hundredths of a second."""


class OthersUse:
    """Measures how many processors other programs used on average since the previous reading.

    Time that a hypervisor gives to other virtual machines is included: it is not available here either.

    Args:
        others_of_run: process ids of the other processes of the same run, which are not other programs.
    """

    def __init__(self, others_of_run: Sequence[int] = ()) -> None:
        self._family = others_of_run
        self._at, self._busy, self._own = _reading(others_of_run)
        self._newest: float | None = None

    def read(self) -> float | None:
        """Return the processors in use by others; None if the last reading is too recent."""
        if time.monotonic() - self._at < SHORTEST_SECONDS:
            return None
        at, busy, own = _reading(self._family)
        others = (busy - self._busy - (own - self._own)) / (at - self._at)
        self._at, self._busy, self._own = at, busy, own
        self._newest = max(0.0, others)
        return self._newest

    def newest(self) -> float:
        """Return the processors in use by others at the last reading; the first one is waited for."""
        while (found := self.read()) is None:
            if self._newest is not None:
                return self._newest
            time.sleep(max(0.0, self._at + SHORTEST_SECONDS - time.monotonic()))
        return found


def usable_processors() -> list[int]:
    """Return the numbers of the logical processors that this process may run on."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity is not None else [*range(os.cpu_count() or 1)]


def _reading(others_of_run: Sequence[int]) -> tuple[float, float, float]:
    """Return seconds: of the clock, of processor time by all programs, and of processor time by the run."""
    times = psutil.cpu_times()._asdict()
    for name in ("idle", "iowait", "guest", "guest_nice"):  # guests are counted in user and nice already
        times.pop(name, None)
    own = time.process_time()
    for pid in others_of_run:
        with suppress(psutil.Error):
            used = psutil.Process(pid).cpu_times()
            own += used.user + used.system
    return time.monotonic(), sum(times.values()), own
