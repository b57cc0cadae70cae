"""What ``precision: auto`` takes, and that it takes the same the next time."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import of, resume, settings_for, train

from cpulm.events import RunStarted
from cpulm.execution.measurement_cache import Ratios, remembered_precisions
from cpulm.execution.precision import BlockShape, block_shape, choose_int8, fast_int8, ratio_key
from cpulm.execution.runtime import choose_runtime, measured_on
from cpulm.system.machine import read_machine

BLOCK = BlockShape(((32, 96), (32, 32), (32, 128), (64, 32)), rows=64)
KEY = ratio_key(BLOCK, "this machine")


@pytest.fixture
def ratios(tmp_path: Path) -> Ratios:
    return Ratios(tmp_path / "ratios.json")


def test_a_calm_measurement_is_remembered_and_a_disturbed_one_is_not(ratios: Ratios) -> None:
    """Which of the two it is depends on what else this machine does."""
    first, reason = choose_int8(BLOCK, None, "this machine", ratios)
    assert "earlier" not in reason
    measured = ratios.find(KEY)
    assert (measured is None) == ("on a busy machine" in reason)
    if measured is not None:
        again, later = choose_int8(BLOCK, None, "this machine", ratios)
        assert again == first
        assert "as measured here earlier" in later
        assert f"{measured:.2f}" in reason
        assert f"{measured:.2f}" in later


@pytest.mark.parametrize(("ratio", "precision"), [(0.31, "int8"), (0.79, "int8"), (0.81, "fp32")])
def test_what_is_remembered_decides_and_is_said_to_be_earlier(
    ratios: Ratios, ratio: float, precision: str
) -> None:
    ratios.keep(KEY, ratio)
    chosen, reason = choose_int8(BLOCK, None, "this machine", ratios)
    assert chosen == precision
    assert reason.startswith(f"{precision}: ")
    assert f"as measured here earlier, {ratio:.2f}" in reason


def test_another_machine_or_shape_is_measured_anew(ratios: Ratios) -> None:
    ratios.keep(KEY, 0.5)
    for block, machine in (
        (BLOCK, "another machine"),
        (BlockShape(BLOCK.layers, rows=32), "this machine"),
        (BlockShape(BLOCK.layers[:2], rows=64), "this machine"),
    ):
        assert "earlier" not in choose_int8(block, None, machine, ratios)[1]


def test_a_damaged_memory_is_measured_anew(tmp_path: Path, ratios: Ratios) -> None:
    (tmp_path / "ratios.json").write_text("not JSON", "utf-8")
    assert "earlier" not in choose_int8(BLOCK, None, "this machine", ratios)[1]


def test_a_run_goes_on_in_its_own_precision_whatever_is_remembered_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = read_machine()
    if not fast_int8(machine.instruction_sets):
        pytest.skip("no fast int8 products: there is nothing to choose")
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    settings = settings_for(text, "model.n_embd=32")
    kernels = choose_runtime(settings.runtime, machine).kernels
    key = ratio_key(block_shape(settings), measured_on(machine, kernels))
    remembered_precisions().keep(key, 0.1)
    events, _ = train(settings, tmp_path / "run", stop_at=4)
    assert of(RunStarted, events)[0].precision == "int8"
    remembered_precisions().keep(key, 2.0)
    anew, _ = train(settings, tmp_path / "anew", stop_at=1)
    assert of(RunStarted, anew)[0].precision == "fp32"
    resumed, _ = resume(tmp_path / "run")
    assert of(RunStarted, resumed)[0].precision == "int8"
