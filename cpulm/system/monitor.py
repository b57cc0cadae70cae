"""Samples the machine's state during a run, in a thread of its own.

Nothing here runs per step; the monitor's thread emits the samples as events.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import psutil

from cpulm.events import Listener, MachineSampled
from cpulm.system.cgroup import read_limits
from cpulm.system.machine import within_limits

_FIRST_SAMPLE_SECONDS = 0.25
"""CPU percentages are differences, so the first sample comes after a short time."""
_SLOW_READINGS_SECONDS = 10.0
"""Time between readings that cost milliseconds and change slowly: child processes, clock and temperature."""
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")

_T = TypeVar("_T")


class Monitor:
    """Emits :class:`~cpulm.events.MachineSampled` every ``interval_seconds`` while the context is open.

    Args:
        emit: receives the events in the monitor's thread.
        interval_seconds: between two samples; the first comes sooner.
    """

    def __init__(self, emit: Listener, interval_seconds: float = 2.0) -> None:
        self._emit = emit
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpulm-monitor", daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        sampler = Sampler()
        wait = min(_FIRST_SAMPLE_SECONDS, self._interval_seconds)
        while not self._stop.wait(wait):
            self._emit(sampler.sample())
            wait = self._interval_seconds


class Sampler:
    """Takes samples; keeps the previous counters and the slow readings."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._children: list[psutil.Process] = []
        self._cpu_count = psutil.cpu_count() or 1
        self._mhz: float | None = None
        self._temperature: float | None = None
        self._slow_at = 0.0
        self._read_slow()
        psutil.cpu_percent()
        self._process_percent()

    def sample(self) -> MachineSampled:
        """Return the state of the machine; CPU percentages are averages since the previous sample."""
        if time.monotonic() - self._slow_at >= _SLOW_READINGS_SECONDS:
            self._read_slow()
        used, total = memory()
        return MachineSampled(
            cpu_percent=or_default(psutil.cpu_percent, 0.0),
            process_cpu_percent=self._process_percent(),
            cpu_mhz=self._mhz,
            cpu_temperature=self._temperature,
            process_bytes=sum(_resident_bytes(process) for process in self._processes()),
            memory_used_bytes=used,
            memory_total_bytes=total,
        )

    def _processes(self) -> list[psutil.Process]:
        return [self._process, *self._children]

    def _process_percent(self) -> float:
        """CPU use of this process and its children, in percent of the whole machine."""
        total = sum(or_default(process.cpu_percent, 0.0) for process in self._processes())
        return total / self._cpu_count

    def _read_slow(self) -> None:
        self._slow_at = time.monotonic()
        known = set(self._children)
        found = _descendants(self._process)
        # keep the objects of known children, which store their last CPU time
        self._children = [child for child in self._children if child in found]
        self._children += [child for child in found if child not in known]
        self._mhz = or_default(_mhz, None)
        self._temperature = or_default(_temperature, None)


def memory() -> tuple[int, int]:
    """Return used and total bytes: the container's if its limit is below the machine's memory."""
    whole = or_default(psutil.virtual_memory, None)
    if whole is None:
        return 0, 0
    total, available = within_limits(whole.total, whole.available, read_limits())
    return total - available, total


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Return the memory that this process holds, in bytes; 0 if the system does not say."""
    return _resident_bytes(psutil.Process())


def or_default(read: Callable[[], _T], otherwise: _T) -> _T:
    """Return ``read()``, or ``otherwise`` if the system does not support it or the process has ended."""
    try:
        return read()
    except (psutil.Error, OSError, AttributeError, NotImplementedError, RuntimeError, ValueError):
        return otherwise


def _resident_bytes(process: psutil.Process) -> int:
    found = or_default(process.memory_info, None)
    return found.rss if found is not None else 0


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    nothing: list[psutil.Process] = []
    return or_default(lambda: process.children(recursive=True), nothing)


def _mhz() -> float | None:
    frequency = psutil.cpu_freq()
    return float(frequency.current) if frequency is not None and frequency.current else None


def _temperature() -> float | None:
    """Return the hottest reading, in degrees Celsius, of the first known CPU sensor."""
    sensors = psutil.sensors_temperatures()  # AttributeError except on Linux and FreeBSD
    for name in _CPU_SENSORS:
        if sensors.get(name):
            return max(float(sensor.current) for sensor in sensors[name])
    return None
