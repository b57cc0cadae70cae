"""Every kernel, called from C++ with vectors of each width, agrees with plain loops over doubles.

``scripts/conformance.py`` does the same for the instruction sets of other CPUs.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_builds import NARROWER, BuildKernels, kept_kernels

from cpulm.native.signatures import SIGNATURES
from cpulm.system.machine import read_machine
from cpulm.system.software import Compiler

FOLDER = Path(__file__).parent / "conformance"
INCLUDES = Path(__file__).parents[2] / "cpulm" / "native"
AVX2 = ("-mavx2", "-mfma", "-mf16c")
BY_AVX2 = (*AVX2, "-Wno-psabi", "-include")
NEWER = {
    "AVX-VNNI": ((*AVX2, "-mavxvnni"), (*BY_AVX2, str(FOLDER / "avx_vnni.h"), "-D__AVXVNNI__")),
    "AVX-512": ((*AVX2, "-mavx512f"), (*BY_AVX2, str(FOLDER / "avx512.h"))),
    "AVX512-VNNI": (
        ("-march=x86-64-v4", "-mavx512vnni"),
        (*BY_AVX2, str(FOLDER / "avx512.h"), "-DWITH_VNNI"),
    ),
}
"""Flags for the paths of newer CPUs: for a CPU that has the instructions, and to make them of AVX2's."""

NOT_KERNELS = {  # or one of BLAS
    "cpulm_lanes",
    "cpulm_sum_blocks",
    "cpulm_fast_int8",
    "cpulm_use_openmp",
    "cpulm_use_sgemm",
    "cpulm_product",
    "cpulm_has_pool",
    "cpulm_pool_open",
    "cpulm_pool_work",
    "cpulm_pool_close",
    "cpulm_block_matrix_bytes",
}


@pytest.fixture(scope="module")
def conformance(gcc_like: Compiler, pytestconfig: pytest.Config) -> Path:
    """The program, compiled once for its sources: that takes as long as all that it checks."""
    sources = [*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h"), INCLUDES / "abi.h"]
    digest = hashlib.blake2b(b"".join(path.read_bytes() for path in sorted(sources)), digest_size=8)
    folder = kept_kernels(pytestconfig, "conformance")
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / digest.hexdigest()
    if not program.exists():
        made = folder / f"{program.name}-{os.getpid()}"
        command = [*shlex.split(gcc_like.command), "-std=c++17", "-O1", "-I", str(INCLUDES), "-o", str(made)]
        command += [str(FOLDER / "conformance.cpp"), "-pthread"]
        subprocess.run([*command, *([] if sys.platform == "darwin" else ["-ldl"])], check=True)
        made.replace(program)
    return program


def run(conformance: Path, library: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(conformance), str(library)], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("vectors", [(), *NARROWER.values()], ids=["this CPU", *NARROWER])
def test_every_kernel_agrees_with_plain_loops(
    conformance: Path, build_kernels: BuildKernels, vectors: tuple[str, ...]
) -> None:
    library = build_kernels(*vectors, instead_of="-march=native") if vectors else build_kernels()
    done = run(conformance, library)
    assert done.returncode == 0, done.stdout
    checked = {f"cpulm_{line.split()[0]}" for line in done.stdout.splitlines()[1:-1]}
    kernels = {name for name in SIGNATURES if not name.endswith("_workspace")} - NOT_KERNELS
    assert checked == kernels
    assert done.stdout.endswith("all kernels agree\n")


@pytest.mark.parametrize(
    ("instructions", "says"),
    [
        pytest.param("AVX-VNNI", "lanes 8, fast int8 yes", marks=pytest.mark.slow),
        pytest.param("AVX-512", "lanes 16, fast int8 no", marks=pytest.mark.soak),
        pytest.param("AVX512-VNNI", "lanes 16, fast int8 yes", marks=pytest.mark.soak),
    ],
)
def test_the_paths_of_newer_cpus_agree_on_older_ones_too(
    conformance: Path, build_kernels: BuildKernels, instructions: str, says: str
) -> None:
    here = read_machine().instruction_sets
    if "AVX2" not in here:
        pytest.skip("this CPU has no AVX2")
    flags = NEWER[instructions][instructions not in here]
    done = run(conformance, build_kernels(*flags, instead_of="-march=native"))
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(f"{says}\n")


@pytest.mark.slow
def test_a_wrong_kernel_is_noticed(conformance: Path, build_kernels: BuildKernels) -> None:
    done = run(conformance, build_kernels("-O0", "-Dlogf=expf", instead_of="-O3"))
    assert done.returncode == 1
    assert "lse is wrong" in done.stdout
    assert "a loss is wrong" in done.stdout
