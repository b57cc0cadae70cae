"""When the step is compiled by torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cpulm.errors import SettingsError
from cpulm.execution.compilation import compile_key, decide_compile
from cpulm.execution.compile_times import COMPILE_PAYS_AFTER_SECONDS, CompileTimes
from cpulm.execution.runtime import Runtime
from cpulm.native.kernels import Kernels
from cpulm.settings_resolver import resolve
from cpulm.system.machine import read_machine
from cpulm.system.software import Compiler

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


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("times", "seconds", "compiled"),
    [
        (CompileTimes(cold=40.0, ratio=0.8), 390.0, False),  # 78 s of 390 are less than twice 40
        (CompileTimes(cold=40.0, ratio=0.8), 410.0, True),
        (CompileTimes(cold=40.0, warm=4.0, ratio=0.8), 50.0, True),  # the cache has it by now
        (CompileTimes(cold=40.0, warm=4.0, ratio=0.8), 30.0, False),
        (CompileTimes(cold=4.0, ratio=1.1), 1e6, False),
        (CompileTimes(cold=4.0), LONG, True),  # no ratio: as if nothing were known
        (CompileTimes(ratio=0.5), LONG - 2, False),
    ],
)
def test_times_measured_earlier_decide(times: CompileTimes, seconds: float, compiled: bool) -> None:
    times.keep("this step")
    assert decide_compile(RUNTIME, "auto", MACHINE, seconds, "this step").compiled == compiled
    other = decide_compile(RUNTIME, "auto", MACHINE, seconds, "another step")
    assert other.compiled == (seconds >= COMPILE_PAYS_AFTER_SECONDS)


@pytest.mark.usefixtures("own_cache")
def test_what_only_one_measurement_knows_stays_beside_another() -> None:
    CompileTimes(cold=40.0, ratio=0.9).keep("this step")
    CompileTimes(warm=4.0, ratio=0.8).keep("this step")
    assert CompileTimes.remembered("this step") == CompileTimes(40.0, 4.0, 0.8)
    assert CompileTimes.remembered("another") == CompileTimes()


def test_another_shape_batch_or_precision_is_another_step() -> None:
    settings = [
        resolve(preset="tiny", assignments=changes)
        for changes in ([], ["model.n_layer=5"], ["train.micro_batch_size=8"], ["train.document_mask=true"])
    ]
    keys = [compile_key(one, 512, RUNTIME, MACHINE) for one in settings]
    keys += [compile_key(settings[0], 513, RUNTIME, MACHINE)]
    keys += [compile_key(settings[0], 512, replace(RUNTIME, precision="bf16"), MACHINE)]
    assert len(set(keys)) == len(keys)
    assert compile_key(settings[0], 512, RUNTIME, MACHINE) == keys[0]
