"""Threads of our own for the kernels' regions, beside busy programs; ``thread_pool.h`` says why."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from contextlib import suppress

import torch

PARTS_OF_THREAD = 4
"""A region has so many parts for each thread, so that a thread that loses its processor holds up little."""

_open_threads = 0


class ThreadPool:
    """The pool of a compiled library. Only one may be open at a time; results do not depend on it.

    Args:
        library: loaded, see :class:`cpulm.native.kernels.Kernels`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._threads: list[threading.Thread] = []
        self._held: Sequence[int] = ()

    def use(self, threads: int, processors: Sequence[int] = ()) -> None:
        """Run regions on so many threads from the next one on, the calling one included.

        Args:
            threads: 2 or more; 0: on OpenMP's again.
            processors: the others are held to these, one after the other; none: they run anywhere.
        """
        global _open_threads
        if (threads, processors) == (_open_threads, self._held):
            return
        self._close()
        self._held = processors
        if not threads:
            return
        self._library.cpulm_pool_open()
        for number in range(threads - 1):
            held = processors[number % len(processors)] if processors else None
            thread = threading.Thread(target=self._work, args=(held,), name="cpulm-kernels", daemon=True)
            thread.start()
            self._threads.append(thread)
        _open_threads = threads

    def _work(self, processor: int | None) -> None:
        if processor is not None and hasattr(os, "sched_setaffinity"):
            with suppress(OSError):  # it has been taken away from this process
                os.sched_setaffinity(0, {processor})
        self._library.cpulm_pool_work()

    def _close(self) -> None:
        global _open_threads
        _open_threads = 0
        self._library.cpulm_pool_close()
        for thread in self._threads:
            thread.join()
        self._threads.clear()


def working_threads() -> int:
    """Threads that run a region: those of the open pool, or torch's."""
    return _open_threads or torch.get_num_threads()


def parts() -> int:
    """Parts into which a region's rows are cut: one for each thread of torch, or several for the pool's."""
    return _open_threads * PARTS_OF_THREAD or torch.get_num_threads()
