"""Asks Linux for short time slices: threads that wake up then get a processor at once beside busy programs.

Threads of a parallel region sleep while they wait for the slowest one. A thread that wakes up replaces a busy
program only if its deadline is earlier. A shorter slice has an earlier deadline, and the same share of the
time. Linux has this since 6.12: ``sched_runtime`` of a normal task, in ``sched_setattr(2)``.
"""

from __future__ import annotations

import ctypes
import platform
import sys

from cpulm.system.priority import thread_ids

SHORT_NANOSECONDS = 400_000
"""Linux's own choice is 1.4 ms with 2 processors; 0.1 ms, the shortest it gives, was not faster than this."""
_SYSTEM_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}
"""The numbers of ``sched_setattr`` and ``sched_getattr``: few C libraries have functions for them."""
_SCHED_OTHER, _SCHED_BATCH = 0, 3


class _Attributes(ctypes.Structure):
    """The first version of Linux's ``struct sched_attr``."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


class ShortSlice:
    """Switches all threads of this process between their time slice and a short one; new ones inherit it.

    Does nothing where the system has no such slices, and for threads of low priority, which give way.
    """

    def __init__(self) -> None:
        self._before = 0

    def switch(self, on: bool) -> None:
        """Switch to short slices, or back to the slice that the calling thread had before."""
        if on == bool(self._before):
            return
        found = time_slice(0) if on else self._before
        self._before = found if on else 0
        if found:
            for thread in thread_ids():
                _set_time_slice(thread, SHORT_NANOSECONDS if on else found)


def time_slice(thread: int) -> int:
    """Return the time slice of a thread, 0 for the calling one, in nanoseconds; 0 if the system has none."""
    attributes = _read(thread)
    return 0 if attributes is None else int(attributes.runtime)


def _set_time_slice(thread: int, nanoseconds: int) -> None:
    attributes = _read(thread)  # None: it has just ended
    if attributes is None or attributes.nice > 0:
        return
    attributes.runtime = nanoseconds
    _call(0, thread, ctypes.byref(attributes), 0)


def _read(thread: int) -> _Attributes | None:
    """Return the attributes of a thread that is scheduled by its share; None for others and elsewhere."""
    found = _Attributes()
    if not _call(1, thread, ctypes.byref(found), ctypes.sizeof(found), 0):
        return None
    return found if found.policy in (_SCHED_OTHER, _SCHED_BATCH) else None


def _call(which: int, *arguments: object) -> bool:
    """Call one of :data:`_SYSTEM_CALLS`; return whether it is known here and succeeded."""
    if (
        sys.platform != "linux"
        or platform.machine() not in _SYSTEM_CALLS
        or ctypes.sizeof(ctypes.c_void_p) != 8
    ):
        return False
    number = _SYSTEM_CALLS[platform.machine()][which]
    return bool(ctypes.CDLL(None).syscall(ctypes.c_long(number), *arguments) == 0)
