"""Lowers the priority of this process, so that other programs come first."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

NICE = 10
"""The niceness of a run, of at most 19: on Linux a process of niceness 0 gets nine times its time."""
_BELOW_NORMAL_PRIORITY_CLASS = 0x4000


def lower_priority() -> str:
    """Give this process, its threads and its future child processes a low priority.

    A priority that is already lower stays, and a failure never ends a run.

    Returns:
        The result in words.
    """
    try:
        if sys.platform == "win32":
            return _lower_on_windows()
        return _lower_on_posix()
    except (OSError, AttributeError) as error:
        return f"cannot lower the priority: {error}"


def _lower_on_posix() -> str:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if before < NICE:
        # On Linux each thread has a priority; a new thread inherits that of its creator
        for thread in thread_ids():
            with suppress(ProcessLookupError):  # it has just ended
                os.setpriority(os.PRIO_PROCESS, thread, NICE)
    return f"low priority (nice {max(before, NICE)}): other programs come first"


def thread_ids() -> list[int]:
    """Return the ids of this process's threads; 0, the whole process, if they are unknown."""
    try:
        return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]
    except OSError:
        return [0]


if sys.platform == "win32":

    def _lower_on_windows() -> str:
        import ctypes

        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        kernel.SetPriorityClass.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        if not kernel.SetPriorityClass(kernel.GetCurrentProcess(), _BELOW_NORMAL_PRIORITY_CLASS):
            raise ctypes.WinError(ctypes.get_last_error())
        return "low priority (below normal): other programs come first"
