"""How many threads are tried, and which of them are taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cpulm.execution.measurement_cache import Ratios, remembered_threads
from cpulm.execution.precision import BlockShape
from cpulm.execution.runtime import choose_runtime, measured_on
from cpulm.execution.threads import choose_threads, numbers_to_try
from cpulm.model.int8_linear import TorchQuantizer
from cpulm.settings_resolver import resolve
from cpulm.system.machine import read_machine

BLOCK = BlockShape(((32, 96), (32, 32), (32, 128), (64, 32)), rows=64)
MACHINE = replace(read_machine(), cpu_quota=None, performance_cores=None)


def cores(physical: int, logical: int, usable: int, **more: Any) -> tuple[int, ...]:
    return numbers_to_try(
        replace(MACHINE, physical_cores=physical, usable_logical=logical, usable_cores=usable, **more)
    )


def test_what_may_be_fastest_is_tried_after_what_the_rules_take() -> None:
    assert cores(4, 4, 4) == (4,)
    assert cores(4, 8, 4) == (4, 8)  # two logical processors a core
    assert cores(14, 20, 6, performance_cores=6) == (6, 14, 20)  # slow cores
    assert cores(8, 3, 3) == (3,)  # not all may be used
    assert cores(8, 16, 2, cpu_quota=2.5) == (2,)
    assert cores(8, 16, 8, cpu_quota=12.0) == (8, 12)


@pytest.mark.parametrize(
    ("ratios", "taken"), [((0.9, 0.8), 8), ((0.8, 0.9), 4), ((0.96, 0.97), 2), ((1.5, 1.2), 2)]
)
def test_what_is_remembered_decides(tmp_path: Path, ratios: tuple[float, float], taken: int) -> None:
    """The first number stays unless another is clearly faster."""
    remembered = Ratios(tmp_path / "ratios.json")
    for number, ratio in zip((4, 8), ratios, strict=True):
        remembered.keep(f"{number} for 2 threads; {BLOCK}; this machine", ratio)
    chosen, reason = choose_threads((2, 4, 8), BLOCK, None, "this machine", remembered)
    assert chosen == taken
    assert f"as measured here earlier, {min(ratios):.2f} of their time with 2" in reason


@pytest.mark.parametrize("quantizer", [None, TorchQuantizer()], ids=["fp32", "int8"])
def test_a_measurement_leaves_torchs_threads_and_is_remembered_when_calm(
    tmp_path: Path, quantizer: TorchQuantizer | None
) -> None:
    remembered, before = Ratios(tmp_path / "ratios.json"), torch.get_num_threads()
    _, reason = choose_threads((1, 2), BLOCK, quantizer, "this machine", remembered)
    assert torch.get_num_threads() == before
    kept = remembered.find(f"2 for 1 threads; {BLOCK}; this machine")
    assert (kept is None) == ("on a busy machine" in reason)
    assert kept is None or f"{kept:.2f}" in reason


@pytest.mark.usefixtures("fresh_cache")
def test_a_run_takes_the_faster_number_unless_one_is_asked_for() -> None:
    before = torch.get_num_threads()
    machine = replace(MACHINE, physical_cores=1, usable_cores=1, usable_logical=2)
    asked = resolve(assignments=["runtime.precision=fp32", "runtime.threads=1"]).runtime
    free = resolve(assignments=["runtime.precision=fp32"]).runtime
    try:
        kernels = choose_runtime(asked, machine, BLOCK).kernels
        key = f"2 for 1 threads; {BLOCK}; fp32; {measured_on(machine, kernels)}"
        for ratio, taken in ((0.5, 2), (1.5, 1)):
            remembered_threads().keep(key, ratio)
            chosen = choose_runtime(free, machine, BLOCK)
            assert (chosen.threads, torch.get_num_threads()) == (taken, taken)
            assert f"{ratio:.2f} of their time with 1" in chosen.notes[1]
        assert choose_runtime(asked, machine, BLOCK).threads == 1
        assert choose_runtime(free, machine).threads == 1  # no model: nothing to measure
    finally:
        torch.set_num_threads(before)
