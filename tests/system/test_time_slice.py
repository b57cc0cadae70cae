"""Short time slices, as the system itself reports them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cpulm.system import time_slice as slices
from cpulm.system.priority import thread_ids
from cpulm.system.time_slice import SHORT_NANOSECONDS, ShortSlice, time_slice

needs_slices = pytest.mark.skipif(
    time_slice(0) == 0 or os.getpriority(os.PRIO_PROCESS, 0) > 0,
    reason="no time slices of a thread's own before Linux 6.12, none for low priority",
)


@contextmanager
def sleeping_thread() -> Iterator[int]:
    """The id of a thread that sleeps until the end."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id
    end.set()
    thread.join()


@needs_slices
def test_threads_of_before_and_after_have_short_slices_until_it_is_switched_off() -> None:
    before = time_slice(0)
    short = ShortSlice()
    with sleeping_thread() as old:
        short.switch(True)
        short.switch(True)
        with sleeping_thread() as new:
            assert [time_slice(thread) for thread in (0, old, new)] == [SHORT_NANOSECONDS] * 3
            short.switch(False)
            assert [time_slice(thread) for thread in (0, old, new)] == [before] * 3


@needs_slices
def test_within_a_busy_time_another_one_changes_nothing() -> None:
    """Validations adapt by themselves, within a run that does."""
    outer, inner, before = ShortSlice(), ShortSlice(), time_slice(0)
    outer.switch(True)
    inner.switch(True)
    inner.switch(False)
    assert time_slice(0) == SHORT_NANOSECONDS
    outer.switch(False)
    assert time_slice(0) == before


@needs_slices
def test_low_priority_stays_and_keeps_its_slice() -> None:
    code = (
        "import os\n"
        "from cpulm.system.time_slice import ShortSlice, time_slice\n"
        "os.nice(5)\n"
        "before = time_slice(0)\n"
        "ShortSlice().switch(True)\n"
        "print(os.nice(0), time_slice(0) - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{os.getpriority(os.PRIO_PROCESS, 0) + 5} 0\n"


def test_a_system_without_such_slices_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [time_slice(thread) for thread in thread_ids()]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(slices, "_SYSTEM_CALLS", {})
        short = ShortSlice()
        assert time_slice(0) == 0
        short.switch(True)
        short.switch(False)
    assert [time_slice(thread) for thread in thread_ids()] == found
