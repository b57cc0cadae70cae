"""The kernels' own pool of threads: whoever comes takes parts, and nobody is waited for who did not come."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

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
