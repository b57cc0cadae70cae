"""Controls freed memory: keeps it from step to step, and returns it to the system after a discarded model."""

from __future__ import annotations

import ctypes
import gc
import sys
from traceback import clear_frames

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks for the next step; return whether that was possible.

    By default glibc returns large blocks to the system, which clears and maps their pages again at the next
    request: up to 36,000 pages in a step of ``medium``, 3 to 8 % of its time (2 cores, AVX-512, torch 2.13).
    Other allocators do not change.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def release_memory() -> None:
    """Collect reference cycles and make glibc return free memory to the system.

    After the step of preset llm-trainer-small was measured, this returned 490 MiB: the run's next allocations
    have other sizes and another order, and fit only partly into the freed blocks.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def release_frames(error: BaseException | None) -> None:
    """Release the local variables, such as a model, of the frames of ``error`` and of its causes.

    An error may be the context of its own cause.
    """
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if error is not None and error not in seen:
            seen.append(error)
            clear_frames(error.__traceback__)
            waiting += [error.__cause__, error.__context__]
