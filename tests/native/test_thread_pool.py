"""The kernels' own pool of threads: whoever comes takes parts, and nobody is waited for who did not come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from kernel_builds import BuildKernels

from cpulm.native.kernels import Kernels
from cpulm.native.library import load
from cpulm.native.thread_pool import PARTS_OF_THREAD, ThreadPool, parts, working_threads


@pytest.fixture
def kernels(kernels_library: Path) -> Kernels:
    return Kernels(kernels_library)


@pytest.fixture
def pool(kernels: Kernels) -> Iterator[ThreadPool]:
    if kernels.pool is None:
        pytest.skip("no pools on this system")
    yield kernels.pool
    kernels.pool.use(0)


def norm(kernels: Kernels, rows: int) -> torch.Tensor:
    x = torch.linspace(-2.0, 3.0, rows * 64).reshape(rows, 64)
    return kernels.rms_norm(x, torch.ones(64), 1e-6)[0]


def test_an_open_pool_cuts_regions_into_several_parts_for_each_thread(pool: ThreadPool) -> None:
    pool.use(3)
    assert (working_threads(), parts()) == (3, 3 * PARTS_OF_THREAD)
    pool.use(0)
    assert working_threads() == parts() == torch.get_num_threads()


@pytest.mark.parametrize("rows", [1, 2, 500])
def test_any_number_of_threads_gives_the_same(kernels: Kernels, pool: ThreadPool, rows: int) -> None:
    wanted = norm(kernels, rows)
    for threads in (2, 5, 2, 9):
        pool.use(threads)
        for _ in range(200):
            assert torch.equal(norm(kernels, rows), wanted)


def test_a_region_ends_without_a_single_thread_of_the_pool(
    kernels: Kernels, pool: ThreadPool, kernels_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if none of them got a processor."""
    wanted, library = norm(kernels, 100), load(kernels_library)
    monkeypatch.setattr("cpulm.native.kernels.parts", lambda: 12)
    library.cpulm_pool_open()
    try:
        assert torch.equal(norm(kernels, 100), wanted)
    finally:
        library.cpulm_pool_close()


def test_opening_one_pool_closes_that_of_another_library(
    pool: ThreadPool, build_kernels: BuildKernels
) -> None:
    other = Kernels(build_kernels("-O0", instead_of="-O3")).pool
    assert other is not None
    before = threading.active_count()
    pool.use(3)
    other.use(4)
    assert (working_threads(), threading.active_count() - before) == (4, 3)
    pool.use(0)
    assert threading.active_count() == before


def test_an_opening_that_is_interrupted_is_closed_by_the_next_use(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, start = threading.active_count(), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if threading.active_count() > before:
            raise KeyboardInterrupt
        start(thread)

    with monkeypatch.context() as changed:
        changed.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.use(4)
    pool.use(0)
    assert threading.active_count() == before


def test_where_the_system_gives_no_more_threads_the_others_do_their_work(
    kernels: Kernels, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    wanted = norm(kernels, 100)
    with monkeypatch.context() as changed:
        changed.setattr(threading.Thread, "start", refused)
        pool.use(4)
    assert torch.equal(norm(kernels, 100), wanted)


def test_kernels_bear_it_that_another_thread_opens_and_closes_the_pool(
    kernels: Kernels, pool: ThreadPool
) -> None:
    """A kernel's working memory has room for the parts that it is called with, whenever the pool changes."""
    int8 = kernels.int8
    if int8 is None:
        pytest.skip("no fast int8 products on this CPU")
    x = torch.linspace(-2.0, 3.0, 96 * 64).reshape(96, 64)
    wanted, ended = int8.left_and_right(x), threading.Event()

    def change() -> None:
        while not ended.is_set():
            for threads in (7, 0, 2):
                pool.use(threads)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(2000):
            for found, right in zip(int8.left_and_right(x), wanted, strict=True):
                assert torch.equal(found.values, right.values)
                assert torch.equal(found.scale, right.scale)
    finally:
        ended.set()
        changing.join()


def test_regions_of_several_threads_at_a_time_do_not_disturb_each_other(
    kernels: Kernels, pool: ThreadPool
) -> None:
    sizes = [3, 64, 500, 1000]
    wanted = [norm(kernels, rows) for rows in sizes]
    pool.use(3)

    def repeat(number: int) -> bool:
        return all(torch.equal(norm(kernels, sizes[number]), wanted[number]) for _ in range(300))

    with ThreadPoolExecutor(len(sizes)) as callers:
        assert all(callers.map(repeat, range(len(sizes))))
