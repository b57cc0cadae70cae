"""Threads of our own for the kernels' regions, beside busy programs; ``thread_pool.h`` says why."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from cpulm.linked_functions import linked_function

PARTS_OF_THREAD = 4
"""A region has so many parts for each thread, so that a thread that loses its processor holds up little."""

MKL_THREADS = "MKL_Set_Num_Threads_Local"
"""MKL's function that limits the threads of products which the calling thread begins."""


@dataclass
class _OpenPool:
    """A pool that is open; ``workers`` are its threads beside the calling one."""

    library: ctypes.CDLL
    threads: int
    processors: tuple[int, ...]
    workers: list[threading.Thread] = field(default_factory=list)


_open: _OpenPool | None = None
_lock = threading.RLock()


class ThreadPool:
    """The pool of a compiled library. One is open at a time: opening it closes that of another library.

    Args:
        library: loaded, see :class:`cpulm.native.kernels.Kernels`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def use(self, threads: int, processors: Sequence[int] = ()) -> None:
        """Run regions on so many threads from the next one on, the calling one included.

        Args:
            threads: 2 or more, of which there are fewer if the system gives no more; 0: on OpenMP's again.
            processors: the others are held to these, one after the other; none: they run anywhere.
        """
        global _open
        wanted = _OpenPool(self._library, threads, tuple(processors)) if threads else None
        with _lock:
            if wanted is not None and _open is not None and _same(_open, wanted):
                return
            if _open is not None:
                _close(_open)
            _open = wanted  # before it is open: whatever interrupts this, the next use closes it
            if wanted is not None:
                _fill(wanted)


def _same(one: _OpenPool, other: _OpenPool) -> bool:
    known = one.library, one.threads, one.processors
    return known == (other.library, other.threads, other.processors)


def _fill(pool: _OpenPool) -> None:
    pool.library.cpulm_pool_open()
    for number in range(pool.threads - 1):
        held = pool.processors[number % len(pool.processors)] if pool.processors else None
        arguments = (pool.library, held)
        worker = threading.Thread(target=_work, args=arguments, name="cpulm-kernels", daemon=True)
        with suppress(RuntimeError):  # the system gives no more threads; those that there are do its work
            worker.start()
            pool.workers.append(worker)


def _work(library: ctypes.CDLL, processor: int | None) -> None:
    if processor is not None and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # it has been taken away from this process
            os.sched_setaffinity(0, {processor})
    mkl = linked_function(MKL_THREADS)
    if mkl is not None:  # else each product would be a region of several threads
        ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(mkl)(1)
    library.cpulm_pool_work()


def _close(pool: _OpenPool) -> None:
    pool.library.cpulm_pool_close()
    while pool.workers:
        pool.workers[-1].join()
        pool.workers.pop()


def open_library() -> ctypes.CDLL | None:
    """The library whose pool is open; None if none is."""
    pool = _open
    return None if pool is None else pool.library


def working_threads() -> int:
    """Threads that run a region: those of the open pool, or torch's."""
    pool = _open
    return torch.get_num_threads() if pool is None else pool.threads


def parts() -> int:
    """Parts into which a region's rows are cut: one for each thread of torch, or several for the pool's.

    Another thread may open or close the pool at any time, so a kernel and its working memory take one answer.
    """
    pool = _open
    return torch.get_num_threads() if pool is None else pool.threads * PARTS_OF_THREAD
