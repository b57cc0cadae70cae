"""The monitor on this machine: its samples, and that it starts and stops."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import psutil
import pytest

from cpulm.events import Event, MachineSampled, from_json, to_json
from cpulm.system.monitor import Monitor, Sampler, or_default


def test_samples_come_soon_and_end_with_the_context() -> None:
    got: list[Event] = []
    enough = threading.Event()

    def listen(event: Event) -> None:
        got.append(event)
        if len(got) >= 2:
            enough.set()

    with Monitor(listen, interval_seconds=0.05):
        assert enough.wait(30)
    assert not any(thread.name == "cpulm-monitor" for thread in threading.enumerate())
    count = len(got)
    time.sleep(0.2)
    assert len(got) == count
    for event in got:
        assert isinstance(event, MachineSampled)
        assert from_json(to_json(event)).kind == event.kind
        assert 0 <= event.cpu_percent <= 100
        assert event.process_bytes > 0
        assert 0 < event.memory_used_bytes < event.memory_total_bytes


def test_a_context_that_ends_before_the_first_sample_emits_nothing() -> None:
    got: list[Event] = []
    with Monitor(got.append, interval_seconds=3600):
        pass
    assert got == []


def test_the_listener_is_called_off_the_main_thread() -> None:
    threads: list[threading.Thread] = []
    called = threading.Event()

    def listen(event: Event) -> None:
        threads.append(threading.current_thread())
        called.set()

    with Monitor(listen, interval_seconds=0.05):
        assert called.wait(30)
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon


def test_work_shows_up_in_the_cpu_per_cents() -> None:
    sampler = Sampler()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        sum(range(1000))
    assert sampler.sample().process_cpu_percent > 0


def test_memory_of_children_counts() -> None:
    alone = Sampler().sample().process_bytes
    code = "held = bytearray(64 << 20); print(len(held), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        sampler = Sampler()
        assert sampler.sample().process_bytes > alone + (48 << 20)
    finally:
        child.communicate(b"\n")
    assert sampler.sample().process_bytes < alone + (48 << 20)


def test_values_that_a_system_does_not_report_are_left_out() -> None:
    def unsupported() -> float:
        raise NotImplementedError

    def gone() -> float:
        raise psutil.NoSuchProcess(1)

    def wrong() -> float:
        raise ZeroDivisionError

    assert or_default(unsupported, None) is None
    assert or_default(gone, 0.0) == 0.0
    with pytest.raises(ZeroDivisionError):
        or_default(wrong, 0.0)
