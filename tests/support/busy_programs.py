"""Programs that use a processor each and never wait."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def busy_programs(count: int, *, pin: bool = False) -> Iterator[None]:
    """So many programs beside; ``pin`` holds them to the first processor."""
    with ExitStack() as stack:
        for _ in range(count):
            program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(program.wait)
            stack.callback(program.kill)
            if pin:
                os.sched_setaffinity(program.pid, {min(os.sched_getaffinity(0))})
        yield
