"""Measures run time: without the machine's sleep, without stops by Ctrl-Z, without pauses.

No system clock excludes all three. While the machine sleeps, Python's ``time.perf_counter`` stops on Linux
(CLOCK_MONOTONIC) and macOS (mach_absolute_time) but continues on Windows (QueryPerformanceCounter); while a
process is stopped, it continues on all systems. So a thread reads the clocks twice a second, and a long time
without a reading is a gap: see :class:`Ledger`. The wall clock, which users, servers and summer time change,
is used only for the time at which a gap began.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

READING_INTERVAL_SECONDS = 0.5
"""Time between two readings. This much of a gap counts as run time: the process may have run so long."""
SHORTEST_GAP_SECONDS = 15.0
"""Shorter delays of a reading may come from swapping, or from a call that holds the GIL."""
_IDLE_CPU_SHARE = 0.02
"""Fraction of one processor: a process that used less was stopped."""


@dataclass(frozen=True)
class ClockReading:
    """All clocks at one moment, in seconds.

    ``monotonic`` may stop while the machine sleeps; ``boot`` continues, or equals ``monotonic`` on a system
    without such a clock. ``cpu`` is the processor time of all threads of this process.
    """

    monotonic: float
    boot: float
    cpu: float
    wall: float


@dataclass(frozen=True)
class Gap:
    """A time in which the process did not run: the wall clock at its beginning, and its length."""

    wall_began: float
    seconds: float


class Ledger:
    """Adds up run time from readings; has no clock or thread of its own.

    Two kinds of time are not run time. The time by which ``boot`` advanced more than ``monotonic`` is sleep.
    If ``monotonic`` advanced much more than the interval between two readings, and the process used hardly
    any processor time, it was stopped. Hardly any is what it would have used in one interval at its own pace,
    or two percent of one processor. A process that swapping or a long call has delayed uses more.
    """

    def __init__(self, first: ClockReading) -> None:
        self.seconds = 0.0
        """The run time so far."""
        self._last = first
        self._pace_since = first
        self._pace = 1.0
        """The most processors that the process kept busy between two readings."""

    def add(self, reading: ClockReading, *, counts: bool = True, regular: bool = True) -> Gap | None:
        """Count the time since the previous reading.

        Args:
            reading: the clocks now.
            counts: False while the run pauses on purpose.
            regular: whether a thread takes readings every ``READING_INTERVAL_SECONDS``; without it, a long
                time between two readings is not a gap.

        Returns:
            The gap since the previous reading, if there was one.
        """
        last, self._last = self._last, reading
        advance = max(0.0, reading.monotonic - last.monotonic)
        slept = max(0.0, reading.boot - last.boot - advance)
        stopped = 0.0
        if regular and advance - READING_INTERVAL_SECONDS >= SHORTEST_GAP_SECONDS:
            unseen = 1.25 * self._pace * READING_INTERVAL_SECONDS
            if reading.cpu - last.cpu <= max(unseen, _IDLE_CPU_SHARE * advance):
                stopped = advance - READING_INTERVAL_SECONDS
        self._measure_pace(reading)
        if counts:
            self.seconds += advance - stopped
        gap = slept + stopped
        return Gap(last.wall, gap) if gap >= SHORTEST_GAP_SECONDS else None

    def _measure_pace(self, reading: ClockReading) -> None:
        since = self._pace_since
        seconds = reading.monotonic - since.monotonic
        if seconds >= READING_INTERVAL_SECONDS / 2:  # over less, a clock with steps of 16 ms is too coarse
            self._pace = max(self._pace, (reading.cpu - since.cpu) / seconds)
            self._pace_since = reading


def read_clocks() -> ClockReading:
    """Read all clocks of this machine."""
    monotonic = time.perf_counter()
    return ClockReading(monotonic, _boot_clock(monotonic), time.process_time(), time.time())


def _boot_clock(otherwise: float) -> float:
    """Read a clock that continues while the machine sleeps; ``otherwise`` if there is no such clock."""
    if sys.platform == "linux":
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
    elif sys.platform == "darwin":  # this clock, unlike on Linux, continues in sleep
        now = time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
    else:
        now = otherwise
    return now


class RunClock:
    """Measures the run time of a run; any thread may read it. Enter it as a context while the run trains.

    Outside the context there are no regular readings: sleep is excluded if the system reports it, but time in
    which the process was stopped counts.

    Args:
        start_seconds: the run time before this resumption.
        on_gap: called once for each gap with its seconds, from the clock's own thread.
        read: the clocks.
    """

    def __init__(
        self,
        start_seconds: float = 0.0,
        on_gap: Callable[[float], None] | None = None,
        read: Callable[[], ClockReading] = read_clocks,
    ) -> None:
        self.start_seconds = start_seconds
        self.gaps: list[tuple[float, float]] = []
        """(wall clock at its beginning, seconds) of every gap."""
        self._on_gap = on_gap
        self._read = read
        self._lock = threading.Lock()
        self._ledger = Ledger(read())
        self._pauses = 0
        self._gaps_reported = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunClock:
        self.now()  # the time until here had no regular readings
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="cpulm-clock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.now()
        thread, self._thread = self._thread, None
        self._stop.set()
        if thread is not None:
            thread.join(timeout=5.0)

    def now(self) -> float:
        """Seconds of run time since this clock was created, for intervals. It never decreases."""
        with self._lock:
            return self._advance()

    def elapsed(self) -> float:
        """Total seconds of run time, including those before a resumption."""
        return self.start_seconds + self.now()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time within the context."""
        self._change_pauses(+1)
        try:
            yield
        finally:
            self._change_pauses(-1)

    def _change_pauses(self, by: int) -> None:
        with self._lock:
            self._advance()
            self._pauses += by

    def _advance(self) -> float:
        """Update the ledger; the caller holds the lock."""
        gap = self._ledger.add(self._read(), counts=self._pauses == 0, regular=self._thread is not None)
        if gap is not None:
            self.gaps.append((gap.wall_began, gap.seconds))
        return self._ledger.seconds

    def _run(self) -> None:
        while not self._stop.wait(READING_INTERVAL_SECONDS):
            self.now()
            self._report_gaps()
        self._report_gaps()

    def _report_gaps(self) -> None:
        while self._gaps_reported < len(self.gaps):
            seconds = self.gaps[self._gaps_reported][1]
            self._gaps_reported += 1
            if self._on_gap is not None:
                self._on_gap(seconds)
