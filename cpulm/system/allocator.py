"""Memory between its uses: kept from one step to the next, given back once a model is no longer needed."""

from __future__ import annotations

import ctypes
import gc
import sys
from traceback import clear_frames

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Have freed blocks kept for the next step, and say whether that could be arranged.

    By itself glibc returns large ones to the system, whose pages are cleared and mapped anew when they are
    asked for again: up to 36,000 pages in a step of ``medium``, 3 to 8 % of its time (2 cores, AVX-512,
    torch 2.13). Other systems' allocators are left alone.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def release_memory() -> None:
    """Collect what only holds itself, and have glibc give back whatever is free.

    After a model that was only measured that was 490 MiB of the preset llm-trainer-small: what its run takes
    next comes in other sizes and another order, and finds only part of its room there.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def release_frames(error: BaseException | None) -> None:
    """Let go of what was on the way to ``error`` and to what caused it, such as a model; its lines stay."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
