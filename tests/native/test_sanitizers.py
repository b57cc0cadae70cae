"""All kernels, compiled without optimization and with sanitizers, on shapes with ragged ends.

The compiler inlines nothing at -O0: two classes of one name then share one constructor, which frees a wrong
pointer. The address sanitizer sees reads and writes beyond a tensor's end.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_builds import BuildKernels

from cpulm.native.signatures import NAME_LISTS, SIGNATURES
from cpulm.system.software import Compiler

SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def unoptimized(build_kernels: BuildKernels) -> Path:
    return build_kernels("-O0", instead_of="-O3")


@pytest.fixture(scope="module")
def sanitized(gcc_like: Compiler, build_kernels: BuildKernels) -> tuple[Path, dict[str, str]]:
    """A library, and the environment of its user: the sanitizer's own has to be loaded before Python."""
    command = [*shlex.split(gcc_like.command), "-print-file-name=libasan.so"]
    found = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
    if platform.system() != "Linux" or not found.is_absolute():
        pytest.skip("the compiler has no address sanitizer that can be loaded first")
    path = build_kernels(*SANITIZERS, instead_of="-O3")
    return path, {"LD_PRELOAD": str(found.resolve()), "ASAN_OPTIONS": "detect_leaks=0"}


def exercise(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = Path(__file__).parent / "every_kernel.py"
    command = [sys.executable, str(program), str(path)]
    whole = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(command, env=whole, capture_output=True, text=True, check=False)


def test_only_the_functions_that_python_calls_leave_a_unit(unoptimized: Path) -> None:
    """Different things of one name in two units, or two headers, would be taken for one by the linker."""
    if shutil.which("nm") is None or platform.system() != "Linux":
        pytest.skip("nm lists the names here")
    command = ["nm", "-D", "--defined-only", str(unoptimized)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    assert names == {*SIGNATURES, *(f"{name}_signature" for name in SIGNATURES), *NAME_LISTS}


def test_every_kernel_without_optimization(unoptimized: Path) -> None:
    done = exercise(unoptimized)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all kernels\n")


def test_every_kernel_with_sanitizers(sanitized: tuple[Path, dict[str, str]]) -> None:
    """Behind all of them the program reads beyond an end on purpose, which the sanitizer sees."""
    path, environment = sanitized
    done = exercise(path, **environment, BEYOND_THE_END="1")
    assert done.stdout.endswith("all kernels\n"), done.stderr[-5000:]
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
