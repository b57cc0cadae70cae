"""Torch's files, compilers and GPUs, from small real files and programs."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from cpulm.system.host import pretty_name
from cpulm.system.software import (
    Compiler,
    Gpu,
    Torch,
    find_compiler,
    parse_macros,
    parse_nvidia_smi,
    read_gpus,
    read_torch,
)

MIB = 1024**2
posix = pytest.mark.skipif(os.name != "posix", reason="the programs are shell scripts")


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def torch_folder(folder: Path, version: str, config: str, libraries: tuple[str, ...] = ()) -> Path:
    (folder / "include/ATen").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "version.py").write_text(version)
    (folder / "include/ATen/Config.h").write_text(config)
    for name in libraries:
        (folder / "lib" / name).write_bytes(b"")
    return folder


def test_torch_for_the_cpu(tmp_path: Path) -> None:
    folder = torch_folder(
        tmp_path,
        "from typing import Optional\n__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n",
        "#define AT_MKLDNN_ENABLED() 1\n#define AT_MKLDNN_ACL_ENABLED() 0\n#define AT_MKL_ENABLED() 1\n",
    )
    assert read_torch(folder) == Torch("2.13.0+cpu", None, "MKL + oneDNN")


def test_torch_for_cuda_on_arm(tmp_path: Path) -> None:
    folder = torch_folder(
        tmp_path,
        "__version__ = '2.10.0+cu128'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n",
        "#define AT_MKLDNN_ENABLED() 1\n#define AT_MKLDNN_ACL_ENABLED() 1\n#define AT_MKL_ENABLED() 0\n",
        ("libtorch_cpu.so", "libopenblas.so.0"),
    )
    assert read_torch(folder) == Torch(
        "2.10.0+cu128", "CUDA 12.8", "OpenBLAS + oneDNN with Arm Compute Library"
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has Accelerate always")
def test_torch_that_tells_nothing(tmp_path: Path) -> None:
    assert read_torch(tmp_path) == Torch("unknown", None, "unknown")


@pytest.mark.parametrize(
    ("macros", "version"),
    [
        ('#define __GNUC__ 12\n#define __VERSION__ "12.2.0"\n', "GCC 12.2.0"),
        ('#define __VERSION__ "Clang 18.1.3 (1ubuntu1)"\n', "Clang 18.1.3 (1ubuntu1)"),
        ("", "unknown"),
    ],
)
def test_compiler_version(macros: str, version: str) -> None:
    assert parse_macros(macros) == version


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_real_compiler_is_found() -> None:
    compiler, problem = find_compiler({"PATH": os.environ["PATH"], "CXX": "g++"})
    assert compiler is not None, problem
    assert Path(compiler.command).name == "g++"
    assert problem == ""


@posix
def test_a_compiler_may_be_called_by_another_program(tmp_path: Path) -> None:
    program(tmp_path, "ccache", 'echo "#define __VERSION__ \\"$*\\""')
    compiler, problem = find_compiler({"PATH": str(tmp_path), "CXX": "ccache g++ -m64"})
    assert compiler is not None, problem
    assert compiler.command == f"{tmp_path}/ccache g++ -m64"
    assert compiler.version.startswith("g++ -m64 -std=c++17 -E")


def test_no_compiler(tmp_path: Path) -> None:
    assert find_compiler({"PATH": str(tmp_path)}) == (None, "no C++ compiler was found")
    for asked in ("icpx", "ccache icpx", "g++ -D'x"):
        assert find_compiler({"PATH": str(tmp_path), "CXX": asked}) == (None, f"CXX={asked} is not found")


@posix
def test_a_compiler_that_torch_cannot_use_compiles_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    program(tmp_path, "g++", """echo '#define __VERSION__ "12.2.0"'; echo '#define HAS_OMP'""")
    assert find_compiler({"PATH": str(tmp_path)}) == (
        Compiler(f"{tmp_path}/g++", "GCC 12.2.0", "Python.h is missing (on Debian: the package python3-dev)"),
        "",
    )
    (tmp_path / "Python.h").touch()
    assert find_compiler({"PATH": str(tmp_path)}) == (Compiler(f"{tmp_path}/g++", "GCC 12.2.0"), "")
    program(tmp_path, "g++", """echo '#define __VERSION__ "12.2.0"'""")
    without = Compiler(f"{tmp_path}/g++", "GCC 12.2.0", "OpenMP's header omp.h is missing")
    assert find_compiler({"PATH": str(tmp_path)}) == (without, "")
    program(tmp_path, "c++", """echo '#define __VERSION__ "13.1.0"'; echo '#define HAS_OMP'""")
    assert find_compiler({"PATH": str(tmp_path)}) == (Compiler(f"{tmp_path}/c++", "GCC 13.1.0"), "")


@posix
@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'cannot execute cc1plus' >&2; exit 1", "g++: cannot execute cc1plus"),
        ("exit 7", "g++: ends with code 7"),
    ],
)
def test_a_broken_compiler_is_none(tmp_path: Path, script: str, problem: str) -> None:
    program(tmp_path, "g++", script)
    assert find_compiler({"PATH": str(tmp_path)}) == (None, problem)


def test_nvidia_smi_lines() -> None:
    assert parse_nvidia_smi("NVIDIA H200, 143771, 9.0\nTesla T4, 15360, 7.5\n") == (
        Gpu("NVIDIA H200", "cuda", 143771 * MIB, "9.0"),
        Gpu("Tesla T4", "cuda", 15360 * MIB, "7.5"),
    )
    assert parse_nvidia_smi("NVIDIA GB10, [N/A], [N/A]\n") == (Gpu("NVIDIA GB10", "cuda", None, None),)
    assert parse_nvidia_smi("Tesla K80, 11441\n") == (Gpu("Tesla K80", "cuda", 11441 * MIB, None),)
    assert parse_nvidia_smi("\n") == ()


@posix
def test_gpus_of_an_old_driver_and_hidden_ones(tmp_path: Path) -> None:
    script = 'case "$1" in *compute_cap*) echo "not a valid field"; exit 2;; esac; echo "Tesla K80, 11441"'
    program(tmp_path, "nvidia-smi", script)
    seen = {"PATH": str(tmp_path)}
    assert read_gpus("x86_64", seen, "linux") == (Gpu("Tesla K80", "cuda", 11441 * MIB, None),)
    assert read_gpus("x86_64", {**seen, "CUDA_VISIBLE_DEVICES": ""}, "linux") == ()
    assert read_gpus("x86_64", {**seen, "CUDA_VISIBLE_DEVICES": "-1"}, "linux") == ()
    assert read_gpus("x86_64", {"PATH": ""}, "linux") == ()


def test_gpu_of_a_mac() -> None:
    assert read_gpus("arm64", {}, "darwin") == (Gpu("Apple GPU", "mps", None),)
    assert read_gpus("x86_64", {}, "darwin") == ()


def test_distribution_name(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text('NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\nID=ubuntu\n')
    assert pretty_name(release) == "Ubuntu 24.04.1 LTS"
    assert pretty_name(tmp_path / "none") == ""
