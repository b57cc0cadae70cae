"""Run time: a table of the clocks' behaviour on each system, and a real stop of a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from cpulm.system.run_clock import (
    READING_INTERVAL_SECONDS,
    ClockReading,
    Ledger,
    RunClock,
    read_clocks,
)

HOUR = 3600.0
START = ClockReading(monotonic=1000.0, boot=5000.0, cpu=30.0, wall=1.8e9)


def later(reading: ClockReading, monotonic: float, boot: float, cpu: float, wall: float) -> ClockReading:
    """The clocks after each went on by so many seconds."""
    return ClockReading(
        reading.monotonic + monotonic, reading.boot + boot, reading.cpu + cpu, reading.wall + wall
    )


def at_work(processors: float) -> tuple[Ledger, ClockReading]:
    """A ledger after ten seconds of looks twice a second at that many busy processors."""
    ledger, reading = Ledger(START), START
    for _ in range(20):
        reading = later(reading, 0.5, 0.5, 0.5 * processors, 0.5)
        assert ledger.add(reading) is None
    assert ledger.seconds == pytest.approx(10.0)
    return ledger, reading


@pytest.mark.parametrize(
    ("what", "processors", "monotonic", "boot", "cpu", "wall", "run_seconds", "gap_seconds"),
    [
        ("nothing special", 2, 0.5, 0.5, 1.0, 0.5, 0.5, None),
        ("Linux or macOS sleeps an hour", 2, 0.4, HOUR + 0.4, 0.8, HOUR, 0.4, HOUR),
        ("Linux sleeps ten seconds", 2, 0.4, 10.4, 0.8, 10.4, 0.4, None),
        ("Windows sleeps an hour", 2, HOUR, HOUR, 0.8, HOUR, 0.5, HOUR - 0.5),
        ("Ctrl-Z for 20 seconds", 2, 20.0, 20.0, 0.9, 20.0, 0.5, 19.5),
        ("Ctrl-Z for 20 seconds on 64 processors", 64, 20.0, 20.0, 32.0, 20.0, 0.5, 19.5),
        ("Ctrl-Z for 10 seconds", 2, 10.0, 10.0, 0.9, 10.0, 10.0, None),
        ("sleep of an hour while stopped", 2, 600.0, 600.0 + HOUR, 0.1, 600.0 + HOUR, 0.5, HOUR + 599.5),
        ("a call that keeps Python's lock for a minute", 2, 60.0, 60.0, 60.0, 60.0, 60.0, None),
        ("swapping for 40 seconds at a tenth of a processor", 2, 40.0, 40.0, 4.0, 40.0, 40.0, None),
        ("the wall clock is set forward by a day", 2, 0.5, 0.5, 1.0, 86400.5, 0.5, None),
        ("summer time ends", 2, 0.5, 0.5, 1.0, 0.5 - HOUR, 0.5, None),
        ("a clock that goes back", 2, -0.1, -0.1, 0.0, 0.0, 0.0, None),
    ],
)
def test_what_counts_as_run_time(
    what: str,
    processors: float,
    monotonic: float,
    boot: float,
    cpu: float,
    wall: float,
    run_seconds: float,
    gap_seconds: float | None,
) -> None:
    ledger, reading = at_work(processors)
    before = ledger.seconds
    gap = ledger.add(later(reading, monotonic, boot, cpu, wall))
    assert ledger.seconds - before == pytest.approx(run_seconds), what
    assert (gap.seconds if gap else None) == (pytest.approx(gap_seconds) if gap_seconds else None), what
    if gap is not None:
        assert gap.wall_began == reading.wall


def test_the_pace_is_also_measured_from_frequent_readings() -> None:
    """A fast loop asks every few milliseconds; what a stop can hide is known all the same."""
    ledger, reading = Ledger(START), START
    for _ in range(1000):
        reading = later(reading, 0.01, 0.01, 0.32, 0.01)
        ledger.add(reading)
    gap = ledger.add(later(reading, 30.0, 30.0, 15.0, 30.0))
    assert gap is not None
    assert ledger.seconds == pytest.approx(10.0 + READING_INTERVAL_SECONDS)


def test_without_regular_readings_a_long_time_is_run_time() -> None:
    ledger = Ledger(START)
    assert ledger.add(later(START, 100.0, 100.0, 0.0, 100.0), regular=False) is None
    assert ledger.seconds == 100.0


class Clocks:
    """Clocks that stand where a test puts them."""

    def __init__(self) -> None:
        self.reading = START

    def __call__(self) -> ClockReading:
        return self.reading

    def advance(self, seconds: float, *, boot: float = 0.0, cpu: float = 0.0) -> None:
        self.reading = later(self.reading, seconds, seconds + boot, cpu, seconds + boot)


def test_a_resumed_run_continues_from_its_earlier_run_time() -> None:
    clocks = Clocks()
    clock = RunClock(120.0, read=clocks)
    assert (clock.elapsed(), clock.now()) == (120.0, 0.0)
    clocks.advance(5.0)
    assert (clock.elapsed(), clock.now()) == (125.0, 5.0)


def test_pauses_are_left_out_also_nested_ones() -> None:
    clocks = Clocks()
    clock = RunClock(read=clocks)
    clocks.advance(1.0)
    with clock.pause():
        clocks.advance(10.0)
        with clock.pause():
            clocks.advance(10.0)
        clocks.advance(10.0)
        assert clock.now() == 1.0
    clocks.advance(2.0)
    assert clock.now() == 3.0


def test_a_gap_is_reported_once_and_off_the_main_thread() -> None:
    clocks = Clocks()
    told: list[tuple[float, threading.Thread]] = []
    heard = threading.Event()

    def on_gap(seconds: float) -> None:
        told.append((seconds, threading.current_thread()))
        heard.set()

    with RunClock(on_gap=on_gap, read=clocks) as clock:
        clocks.advance(0.25, boot=HOUR)
        assert clock.now() == 0.25  # found here, told by the clock's own thread
        assert heard.wait(10)
        clocks.advance(0.25)
        time.sleep(2.5 * READING_INTERVAL_SECONDS)
    assert [seconds for seconds, _ in told] == [HOUR]
    assert told[0][1] is not threading.main_thread()
    assert clock.gaps == [(START.wall, HOUR)]
    assert not any(thread.name == "cpulm-clock" for thread in threading.enumerate())


def test_a_gap_at_the_very_end_is_reported_too() -> None:
    clocks = Clocks()
    told: list[float] = []
    with RunClock(on_gap=told.append, read=clocks):
        clocks.advance(0.25, boot=60.0)
    assert told == [60.0]


def test_many_threads_agree_and_time_never_goes_back() -> None:
    clock = RunClock()
    seen: list[list[float]] = []

    def ask() -> None:
        seen.append([clock.now() for _ in range(2000)])

    began = time.perf_counter()
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = clock.now()
    assert last <= time.perf_counter() - began + 1.0
    for times in seen:
        assert times == sorted(times)
        assert times[-1] <= last


def test_it_agrees_with_the_system_while_nothing_happens() -> None:
    first, clock = read_clocks(), RunClock()
    with clock:
        time.sleep(1.2)
        passed = read_clocks().monotonic - first.monotonic
        assert clock.now() == pytest.approx(passed, abs=0.1)
    assert clock.gaps == []


def test_work_moves_the_processor_time_that_tells_it_from_a_stop() -> None:
    before = read_clocks()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        sum(range(1000))
    assert read_clocks().cpu > before.cpu + 0.05


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process")
def test_a_stopped_process_does_not_spend_its_time() -> None:
    """Stopped for longer than the shortest gap, as by Ctrl-Z and ``fg``; the gap is short here."""
    shortest = 1.5
    program = (
        "import sys, time\n"
        "from cpulm.system import run_clock\n"
        "from cpulm.system.run_clock import RunClock\n"
        f"run_clock.SHORTEST_GAP_SECONDS = {shortest}\n"
        "told = []\n"
        "with RunClock(on_gap=told.append) as clock:\n"
        "    time.sleep(1.2)\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    time.sleep(1.2)\n"
        "    print(clock.elapsed(), flush=True)\n"
        "print(*told)\n"
    )
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(shortest + 2.0)
        os.kill(child.pid, signal.SIGCONT)
        out, _ = child.communicate("go on\n", timeout=60)
    finally:
        child.kill()
    elapsed, told = out.splitlines()
    assert 2.4 <= float(elapsed) <= time.monotonic() - began - shortest
    assert [float(seconds) for seconds in told.split()] == [pytest.approx(shortest + 2.0, abs=1.5)]
