"""The kernels run on the threads of torch's OpenMP, by either of its two interfaces, or on one."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cpulm.linked_functions import linked_function
from cpulm.native.int8 import Factor, Int8Kernels
from cpulm.native.kernels import Kernels
from cpulm.native.library import load, use_openmp
from cpulm.system.software import Compiler

# Clang's interface to OpenMP, as Windows' library has it, in terms of GCC's interface.
CLANGS = r"""
#include <cstdint>
typedef void (*Task)(int32_t *, int32_t *, void *, void *);
struct Call {
    Task task;
    void *first, *second;
};
extern "C" {
void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
void (*gomp_barrier)();
int requested, regions, barriers;
int32_t __kmpc_global_thread_num(void *) { return 7; }
void __kmpc_push_num_threads(void *, int32_t thread, int32_t threads) {
    requested = thread == 7 ? threads : -1;
}
void __kmpc_barrier(void *, int32_t) {
    __atomic_fetch_add(&barriers, 1, __ATOMIC_RELAXED);
    gomp_barrier();
}
void __kmpc_fork_call(void *, int32_t, Task task, void *first, void *second) {
    Call call = {task, first, second};
    regions++;
    gomp_parallel([](void *data) {
        Call *of = (Call *)data;
        int32_t number = 0;
        of->task(&number, &number, of->first, of->second);
    }, &call, requested, 0);
}
}
"""


@pytest.fixture
def kernels(kernels_library: Path) -> Iterator[Kernels]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield Kernels(kernels_library)
    torch.set_num_threads(threads)
    use_openmp(load(kernels_library), linked_function)


def results(kernels: Kernels, library: ctypes.CDLL) -> list[torch.Tensor]:
    """Of regions with a barrier, with a loop whose tasks are taken one by one, and with neither."""
    torch.manual_seed(0)
    x = torch.randn(96, 64)
    y, _ = kernels.rms_norm(x, torch.ones(64), 1e-6)
    int8 = kernels.int8 or Int8Kernels(library, kernels.lanes)
    rows, columns = int8.left_and_right(x)
    product = int8.product(rows, Factor(columns.values[:64], columns.scale))
    memory = torch.empty(kernels.block_matrix_bytes(x), dtype=torch.uint8)
    together = kernels.block_matrix(x, memory).product(x)
    return [y, columns.values, columns.scale, product, together]


def test_either_interface_of_openmp_gives_the_same(
    kernels: Kernels, kernels_library: Path, gcc_like: Compiler, tmp_path: Path
) -> None:
    library = load(kernels_library)
    assert kernels.threaded
    wanted = results(kernels, library)
    (tmp_path / "clangs.cpp").write_text(CLANGS)
    made = tmp_path / "clangs.so"
    command = [
        *shlex.split(gcc_like.command),
        "-shared",
        "-fPIC",
        str(tmp_path / "clangs.cpp"),
        "-o",
        str(made),
    ]
    subprocess.run(command, check=True)
    clangs = ctypes.CDLL(str(made))
    for name in ("GOMP_parallel", "GOMP_barrier"):
        ctypes.c_void_p.in_dll(clangs, name.lower()).value = linked_function(name)

    def function(name: str) -> int | None:
        if name.startswith("omp_"):
            return linked_function(name)
        return ctypes.cast(getattr(clangs, name), ctypes.c_void_p).value if "kmpc" in name else None

    assert use_openmp(library, function)
    found = results(kernels, library)
    assert all(map(torch.equal, found, wanted))
    counts = {name: ctypes.c_int.in_dll(clangs, name).value for name in ("requested", "regions", "barriers")}
    assert counts == {"requested": 2, "regions": 6, "barriers": 2}


@pytest.mark.parametrize("missing", ["omp_get_thread_num", "GOMP_barrier", ""])
def test_without_openmp_the_calling_thread_does_everything(
    kernels: Kernels, kernels_library: Path, missing: str
) -> None:
    library = load(kernels_library)
    wanted = results(kernels, library)

    def function(name: str) -> int | None:
        return None if missing in name or "kmpc" in name else linked_function(name)

    assert not use_openmp(library, function)
    assert all(map(torch.equal, results(kernels, library), wanted))
