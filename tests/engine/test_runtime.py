"""When the step is compiled by torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cpulm.engine.machine.software import Compiler
from cpulm.engine.runtime import COMPILE_PAYS_AFTER_SECONDS, Runtime, decide_compile
from cpulm.engine.sysinfo import read_machine
from cpulm.errors import SettingsError
from cpulm.native.kernels import Kernels

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
