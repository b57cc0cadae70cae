"""Low priority, as the system itself reports it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="asks for POSIX priorities")


def after(program: str, nice: int = 0) -> list[str]:
    """What ``program`` prints in a process of its own: a low priority cannot be taken back."""
    code = f"import os\nfrom cpulm.system.priority import lower_priority\nos.nice({nice})\n{program}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


BEFORE = os.getpriority(os.PRIO_PROCESS, 0) if sys.platform != "win32" else 0


def test_the_process_and_its_children_get_low_priority() -> None:
    note, own, child = after(
        "print(lower_priority(), flush=True)\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0), flush=True)\n"
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import os; print(os.nice(0))'], check=True)\n"
    )
    expected = str(max(10, BEFORE))
    assert (own, child) == (expected, expected)
    assert note == f"low priority (nice {expected}): other programs come first"


def test_lowering_twice_is_the_same_as_once() -> None:
    """A run started by a process of low priority keeps that priority."""
    assert after("lower_priority(); lower_priority(); print(os.nice(0))") == [str(max(10, BEFORE))]


def test_a_lower_priority_stays_as_it_is() -> None:
    expected = str(min(19, BEFORE + 15))
    note, own = after("print(lower_priority()); print(os.nice(0))", nice=15)
    assert own == expected
    assert f"nice {expected}" in note


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority per thread")
def test_existing_threads_get_low_priority_too() -> None:
    lines = after(
        "import threading\n"
        "done = threading.Event()\n"
        "threads = [threading.Thread(target=done.wait) for _ in range(3)]\n"
        "[thread.start() for thread in threads]\n"
        "lower_priority()\n"
        "print(*[os.getpriority(os.PRIO_PROCESS, thread.native_id) for thread in threads])\n"
        "done.set()\n"
    )
    assert lines == [" ".join([str(max(10, BEFORE))] * 3)]
