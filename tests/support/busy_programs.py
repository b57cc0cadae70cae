"""Programs that use a processor each, all the time or a part of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_PERIOD_SECONDS = 0.02
_PROGRAM = """
import sys, time
work = float(sys.argv[1])
while True:
    end = time.thread_time() + work
    while time.thread_time() < end:
        pass
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def busy_programs(count: int, *, pin: bool = False, part: float = 1.0) -> Iterator[None]:
    """So many programs beside.

    Args:
        pin: hold them to the first processor.
        part: of the time that each works, in pieces of milliseconds; 1: it never waits.
    """
    work, pause = part * _PERIOD_SECONDS, (1.0 - part) * _PERIOD_SECONDS
    endless = [sys.executable, "-c", "while True: pass"]
    with ExitStack() as stack:
        for _ in range(count):
            program = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(work), str(pause)] if part < 1.0 else endless
            )
            stack.callback(program.wait)
            stack.callback(program.kill)
            if pin:
                os.sched_setaffinity(program.pid, {min(os.sched_getaffinity(0))})
        yield
