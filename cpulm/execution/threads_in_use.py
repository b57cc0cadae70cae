"""The threads of torch and of the kernels' pool: which ones suit a busy machine, and how they are changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cpulm.execution.runtime import Runtime
from cpulm.native import products
from cpulm.native.kernels import Kernels
from cpulm.native.thread_pool import ThreadPool
from cpulm.system.cpu_use import usable_processors
from cpulm.system.openmp import ShortSpin
from cpulm.system.time_slice import ShortSlice


class Threads(NamedTuple):
    """The threads that work.

    Attributes:
        torch: of torch's operations, and of the kernels where no pool is open.
        pool: of the kernels' pool, the calling one included; 0: it is closed.
        products: whether the pool computes the products in float32 too, instead of torch.
    """

    torch: int
    pool: int = 0
    products: bool = False


@dataclass(frozen=True)
class UseThreads:
    """Changes the threads of this process.

    Attributes:
        pool: of the kernels; None: there is none.
    """

    pool: ThreadPool | None

    def __call__(self, threads: Threads) -> None:
        """Use these threads from the next operation on."""
        torch.set_num_threads(threads.torch)
        products.pooled = threads.products
        if self.pool is not None:
            processors = usable_processors()
            # Where all processors are used, each has a thread of the pool, and the calling thread is free.
            self.pool.use(threads.pool, processors if threads.pool > len(processors) else ())


def threads_beside_others(runtime: Runtime) -> list[list[Threads]]:
    """Return the threads of updates that are tried beside busy programs, the first at first.

    Those of the first list whose bits are those of a calm machine are meant. With products in the pool few of
    torch's operations are left, and more threads for them only wait for each other.
    """
    kernels = runtime.kernels
    if runtime.int8_kernels is not None and kernels is not None and kernels.pool is not None:
        return [with_pool(_few(runtime.threads), runtime.threads, kernels.pool)]
    is_eager = runtime.precision == "fp32" and not runtime.compiled
    return threads_of_products(runtime.threads, kernels, in_pool=is_eager)


def threads_of_products(most: int, kernels: Kernels | None, *, in_pool: bool) -> list[list[Threads]]:
    """As :func:`threads_beside_others`, for work with products in float32.

    Args:
        in_pool: whether the pool may compute them.
    """
    pool = pool_of(kernels)
    several = with_pool(thread_counts(most), most, pool)
    if not in_pool or kernels is None or pool is None or not kernels.has_products:
        return [several]
    return [[threads._replace(products=True) for threads in with_pool(_few(most), most, pool)], several]


def _few(most: int) -> list[int]:
    return [1, most] if most > 2 else [1]


def thread_counts(most: int, processors: int | None = None) -> list[int]:
    """Return the thread counts to try beside busy programs: all, half as many, and so on down to one.

    If ``most`` are all the processors, half as many again are tried too.

    Args:
        processors: that this process may run on; None: as the system says.
    """
    counts = [most]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return [most * 3 // 2, *counts] if most > 1 and _are_all(most, processors) else counts


def _are_all(threads: int, processors: int | None = None) -> bool:
    """Whether there is a thread for each processor; who sets fewer wants the rest for other programs."""
    return threads >= (len(usable_processors()) if processors is None else processors)


def with_pool(counts: Sequence[int], most: int, pool: ThreadPool | None) -> list[Threads]:
    """Return these numbers of torch's threads, beside a pool for ``most`` threads if there is one.

    Where all processors are used, the pool has one more, because each processor has one of them then.
    """
    size = 0 if pool is None else most + 1 if _are_all(most) else most
    return [Threads(count, size) for count in counts]


def pool_of(kernels: Kernels | None) -> ThreadPool | None:
    """Return the pool of the kernels; None if there is none."""
    return None if kernels is None else kernels.pool


def short_waits() -> Callable[[bool], None]:
    """Return a function that switches short spinning and short time slices on and off."""
    spin, time_slice = ShortSpin(), ShortSlice()

    def switch(on: bool) -> None:
        spin.switch(on)
        time_slice.switch(on)

    return switch
