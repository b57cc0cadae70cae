"""The defaults that cpulm chooses for a machine."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest

from cpulm.system.cgroup import Limits
from cpulm.system.cpu import Cpu
from cpulm.system.host import Power
from cpulm.system.machine import Machine, choose, read_machine, usable_cores, within_limits
from cpulm.system.software import Compiler, Gpu, Torch
from cpulm.system.thread_variables import read_thread_variables

GIB = 1024**3
H200 = Gpu("NVIDIA H200", "cuda", 140 * GIB, "9.0")
CUDA_TORCH = Torch("2.10.0+cu128", "CUDA 12.8", "MKL + oneDNN")

LAPTOP = Machine(
    cpu_model="Intel Core i7-1260P",
    architecture="x86_64",
    physical_cores=4,
    logical_cores=8,
    usable_logical=8,
    usable_cores=4,
    performance_cores=None,
    cpu_quota=None,
    instruction_sets=("AVX2", "AVX-VNNI"),
    caches={"L2": 1310720},
    max_mhz=4700.0,
    memory_total_bytes=16 * GIB,
    memory_available_bytes=12 * GIB,
    memory_limit_bytes=None,
    swap_total_bytes=0,
    swap_free_bytes=0,
    disk_free_bytes=100 * GIB,
    power=Power("mains"),
    system="Linux",
    python="3.11.7",
    torch=Torch("2.13.0+cpu", None, "MKL + oneDNN"),
    compiler=Compiler("/usr/bin/g++", "GCC 12.2.0"),
    compiler_problem="",
    gpus=(),
)


def machine(**changes: Any) -> Machine:
    return dataclasses.replace(LAPTOP, **changes)


@pytest.mark.parametrize(
    ("physical", "performance", "quota", "cores"),
    [
        (8, None, None, 8),
        (8, None, 4.0, 4),
        (8, None, 2.5, 2),
        (8, None, 0.5, 1),
        (2, None, 16.0, 2),
        (14, 6, None, 6),
        (14, 6, 4.0, 4),
    ],
)
def test_usable_cores(physical: int, performance: int | None, quota: float | None, cores: int) -> None:
    cpu = Cpu("x", "x86_64", physical, 2 * physical, 2 * physical, physical, performance)
    assert usable_cores(cpu, quota) == cores


@pytest.mark.parametrize(
    ("limits", "total", "available"),
    [
        (Limits(), 16, 10),
        (Limits(memory_bytes=32), 16, 10),
        (Limits(memory_bytes=8, memory_used_bytes=3), 8, 5),
        (Limits(memory_bytes=12, memory_used_bytes=1), 12, 10),
        (Limits(memory_bytes=4, memory_used_bytes=6), 4, 0),
        (Limits(memory_bytes=4), 4, 4),
    ],
)
def test_memory_within_the_containers_limit(limits: Limits, total: int, available: int) -> None:
    assert within_limits(16, 10, limits) == (total, available)


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({}, "cpu", "no GPU that torch can use"),
        ({"gpus": (H200,), "torch": CUDA_TORCH}, "cuda", "NVIDIA H200"),
        ({"gpus": (H200,)}, "cpu", "NVIDIA H200 is present, but this torch is built for the CPU only"),
        ({"gpus": (Gpu("Apple GPU", "mps", None),)}, "mps", "Apple GPU"),
    ],
)
def test_device(changes: dict[str, Any], device: str, reason: str) -> None:
    chosen = choose(machine(**changes)).device
    assert (chosen.value, chosen.reason) == (device, reason)


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({"instruction_sets": ("AVX2",)}, "fp32"),
        ({"instruction_sets": ("AVX2", "AVX-512", "AVX512-VNNI")}, "int8"),
        ({"instruction_sets": ("AVX2", "AVX512-VNNI", "AVX512-BF16", "AMX-BF16")}, "int8"),
        ({"instruction_sets": ("AVX2", "AVX-VNNI")}, "int8"),
        ({"instruction_sets": ("NEON", "NEON-i8mm")}, "fp32"),
        ({"instruction_sets": ("AVX2", "AVX-512", "AVX512-BF16")}, "fp32"),
        ({"instruction_sets": ("NEON", "NEON-bf16")}, "fp32"),
        ({"gpus": (H200,), "torch": CUDA_TORCH}, "bf16"),
        ({"gpus": (Gpu("Tesla T4", "cuda", 16 * GIB, "7.5"),), "torch": CUDA_TORCH}, "fp32"),
        ({"gpus": (Gpu("Tesla K80", "cuda", 12 * GIB),), "torch": CUDA_TORCH}, "fp32"),
        ({"gpus": (Gpu("Apple GPU", "mps", None),), "instruction_sets": ("NEON", "NEON-bf16")}, "fp32"),
    ],
)
def test_precision(changes: dict[str, Any], precision: str) -> None:
    assert choose(machine(**changes)).precision.value == precision


def test_int8_names_what_makes_it_fast_and_leaves_nothing_to_compile() -> None:
    chosen = choose(machine(instruction_sets=("AVX2", "AVX512-VNNI")))
    assert "AVX512-VNNI" in chosen.precision.reason
    assert chosen.compile.value is False


def test_compile_needs_a_compiler_and_says_what_is_wrong() -> None:
    plain = machine(instruction_sets=("AVX2",), system="Windows 11")
    assert choose(plain).compile.value is True
    assert choose(machine(instruction_sets=("AVX2",))).compile.value is False  # the kernels do it
    problem = "g++: Python.h is missing"
    without = choose(dataclasses.replace(plain, compiler=None, compiler_problem=problem)).compile
    assert without.value is False
    assert "Python.h is missing" in without.reason


def test_a_compiler_that_torch_cannot_use_still_gives_the_kernels() -> None:
    lacking = machine(
        instruction_sets=("AVX2", "AVX512-BF16"), compiler=Compiler("g++", "g++ 12", "no omp.h")
    )
    assert lacking.has_kernels
    chosen = choose(lacking)
    assert (chosen.precision.value, chosen.compile.value) == ("fp32", False)
    assert "no omp.h" in chosen.compile.reason


@pytest.mark.parametrize(
    ("cores", "gib", "in_fp32", "in_int8"),
    [
        (4, 12, "medium", "large"),
        (16, 64, "large", "large"),
        (16, 3, "medium", "medium"),
        (3, 30, "medium", "medium"),
        (2, 30, "small", "medium"),
        (8, 2, "small", "small"),
        (1, 30, "small", "small"),
        (8, 1, "tiny", "tiny"),
    ],
)
@pytest.mark.parametrize("int8", [False, True])
def test_preset_for_a_first_night(cores: int, gib: int, in_fp32: str, in_int8: str, int8: bool) -> None:
    sets = ("AVX2", "AVX512F", "AVX512-VNNI") if int8 else ("AVX2",)
    here = machine(usable_cores=cores, memory_available_bytes=gib * GIB, instruction_sets=sets)
    chosen = choose(here)
    assert chosen.precision.value == ("int8" if int8 else "fp32")
    assert chosen.preset.value == (in_int8 if int8 else in_fp32)
    assert f"{gib}.0 GiB" in chosen.preset.reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "one per physical core"),
        ({"usable_cores": 2, "cpu_quota": 2.0}, "quota is 2 processors"),
        ({"physical_cores": 14, "usable_cores": 6, "performance_cores": 6}, "one per performance core"),
        ({"usable_cores": 3}, "that this process may use, of 4"),
        ({"cpu_quota": 4.0}, "one per physical core"),
    ],
)
def test_threads_say_why(changes: dict[str, Any], words: str) -> None:
    chosen = choose(machine(**changes)).threads
    assert chosen.value == changes.get("usable_cores", 4)
    assert words in chosen.reason


@pytest.mark.parametrize(
    ("environ", "threads", "words"),
    [
        ({}, 4, "one per physical core"),
        ({"OMP_NUM_THREADS": "2"}, 2, "OMP_NUM_THREADS is 2"),
        ({"OMP_NUM_THREADS": " 3,1"}, 3, "OMP_NUM_THREADS is 3"),
        ({"OMP_NUM_THREADS": "64"}, 8, "OMP_NUM_THREADS is 64"),
        ({"OMP_NUM_THREADS": "4294967297"}, 8, "OMP_NUM_THREADS is 4294967297, and this process may use 8"),
        ({"OMP_NUM_THREADS": ""}, 4, "one per physical core"),
        ({"OMP_NUM_THREADS": "many"}, 4, "core; OMP_NUM_THREADS='many' is not a number of threads"),
        ({"OMP_NUM_THREADS": "2", "OMP_THREAD_LIMIT": "0"}, 2, "OMP_THREAD_LIMIT='0' is not a number"),
        ({"MKL_NUM_THREADS": "1"}, 1, "MKL_NUM_THREADS is 1"),
        ({"MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}, 2, "OMP_NUM_THREADS is 2"),
        ({"OMP_THREAD_LIMIT": "1"}, 1, "OMP_THREAD_LIMIT is 1"),
        ({"OMP_NUM_THREADS": "2", "OMP_THREAD_LIMIT": "3"}, 2, "OMP_NUM_THREADS is 2"),
    ],
)
def test_threads_by_the_environment(environ: dict[str, str], threads: int, words: str) -> None:
    chosen = choose(machine(openmp=read_thread_variables(environ))).threads
    assert chosen.value == threads
    assert words in chosen.reason


def test_notes_name_what_to_fix_first() -> None:
    assert choose(LAPTOP).notes == ()
    notes = choose(machine(power=Power("battery", 40), disk_free_bytes=GIB, torch=None)).notes
    assert [word for word in ("battery", "1.0 GiB", "torch") if any(word in note for note in notes)] == [
        "battery",
        "1.0 GiB",
        "torch",
    ]


def test_this_machine() -> None:
    found = read_machine()
    assert 1 <= found.usable_cores <= found.physical_cores <= found.logical_cores
    assert found.usable_logical <= found.logical_cores
    if hasattr(os, "sched_getaffinity"):
        assert found.usable_logical == len(os.sched_getaffinity(0))
    assert 0 < found.memory_available_bytes <= found.memory_total_bytes
    assert found.torch is not None
    assert found.torch.version[0].isdigit()
    assert json.loads(json.dumps(dataclasses.asdict(found)))["cpu_model"] == found.cpu_model
    assert json.loads(json.dumps(dataclasses.asdict(choose(found))))["threads"]["value"] == found.usable_cores
