"""When the step is compiled by torch, the number of threads, and the recorded facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cpulm.errors import SettingsError
from cpulm.execution.compilation import COMPILE_PAYS_AFTER_SECONDS, decide_compile
from cpulm.execution.runtime import Runtime, choose_runtime, library_facts
from cpulm.native.kernels import Kernels
from cpulm.settings import RuntimeSettings
from cpulm.system.machine import read_machine
from cpulm.system.software import Compiler
from cpulm.system.thread_variables import ThreadVariables

LONG = COMPILE_PAYS_AFTER_SECONDS + 1
MACHINE = replace(read_machine(), compiler=Compiler("g++", "g++ 12"), compiler_problem="")
RUNTIME = Runtime(torch.device("cpu"), "a CPU", 2, "fp32")


@pytest.fixture
def kernels(kernels_library: Path) -> Kernels:
    return Kernels(kernels_library)


@pytest.mark.parametrize("seconds", [None, 1.0, LONG - 2])
def test_a_run_that_is_short_or_of_unknown_length_is_not_compiled(seconds: float | None) -> None:
    decided = decide_compile(RUNTIME, "auto", MACHINE, seconds)
    assert not decided.compiled
    assert "too short" in decided.notes[-1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_long_run_without_kernels_is_compiled(precision: str) -> None:
    assert decide_compile(replace(RUNTIME, precision=precision), "auto", MACHINE, LONG).compiled


def test_a_long_run_is_compiled_only_where_the_kernels_do_not_work(kernels: Kernels) -> None:
    for precision, compiled in (("fp32", False), ("int8", False), ("bf16", True)):
        decided = decide_compile(
            replace(RUNTIME, precision=precision, kernels=kernels), "auto", MACHINE, LONG
        )
        assert decided.compiled == compiled, precision


def test_what_is_asked_for_is_done(kernels: Kernels) -> None:
    with_kernels = replace(RUNTIME, kernels=kernels)
    assert decide_compile(with_kernels, "on", MACHINE, None).compiled
    assert not decide_compile(RUNTIME, "off", MACHINE, LONG).compiled


def test_without_a_compiler_it_is_eager_or_an_error() -> None:
    without = replace(MACHINE, compiler=None, compiler_problem="no C++ compiler was found")
    assert not decide_compile(RUNTIME, "auto", without, LONG).compiled
    with pytest.raises(SettingsError, match="no C\\+\\+ compiler"):
        decide_compile(RUNTIME, "on", without, LONG)
    lacking = replace(MACHINE, compiler=Compiler("g++", "g++ 12", "Python.h is missing"))
    assert not decide_compile(RUNTIME, "auto", lacking, LONG).compiled
    with pytest.raises(SettingsError, match="h is missing"):
        decide_compile(RUNTIME, "on", lacking, LONG)


@pytest.mark.parametrize(("name", "is_named"), [("OMP_DYNAMIC", True), ("LANG", False)])
def test_what_bits_depend_on_is_recorded(name: str, is_named: bool) -> None:
    facts = library_facts(MACHINE, None, {name: "true"})
    assert facts["torch"] == torch.__version__
    assert facts["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert facts["kernels_key"] == facts["kernels_compiler"] == ""
    assert (name in facts["math_variables"]) == is_named


def test_kernels_are_recorded_with_their_compiler(kernels: Kernels) -> None:
    facts = library_facts(MACHINE, kernels, {})
    assert (facts["kernels_key"], facts["kernels_compiler"]) == (kernels.name, "g++ 12")


@pytest.mark.parametrize(
    ("limit", "wanted", "asked", "threads", "words"),
    [
        (None, 1, None, 1, "OMP_NUM_THREADS is 1"),
        (None, 1, 2, 2, "requested"),
        (1, None, 2, 1, "OMP_THREAD_LIMIT allows no more"),
        (1, 2, None, 1, "OMP_THREAD_LIMIT is 1"),
    ],
)
def test_threads_are_those_that_openmp_gives(
    limit: int | None, wanted: int | None, asked: int | None, threads: int, words: str
) -> None:
    before = torch.get_num_threads()
    machine = replace(MACHINE, usable_logical=2, usable_cores=2, openmp=ThreadVariables(wanted, limit))
    settings = RuntimeSettings(device="cpu", threads=asked, kernels="off")
    try:
        chosen = choose_runtime(settings, machine)
        assert (chosen.threads, torch.get_num_threads()) == (threads, threads)
        assert words in chosen.notes[1]
    finally:
        torch.set_num_threads(before)
