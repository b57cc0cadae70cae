"""What ``precision: auto`` takes, and that it takes the same the next time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import of, resume, settings_for, train

from cpulm.engine.precision import WORTH_IT, BlockShape, choose_int8, fast_int8
from cpulm.engine.remembered import Ratios, remembered_precisions
from cpulm.engine.sysinfo import read_machine
from cpulm.events import RunStarted

BLOCK = BlockShape(((32, 96), (32, 32), (32, 128), (64, 32)), rows=64)


@pytest.fixture
def ratios(tmp_path: Path) -> Ratios:
    return Ratios(tmp_path / "ratios.json")


def key_of(path: Path) -> str:
    (key,) = json.loads(path.read_text("utf-8"))
    return str(key)


def test_a_measurement_is_made_once_and_said_to_be_an_earlier_one(tmp_path: Path, ratios: Ratios) -> None:
    first, reason = choose_int8(BLOCK, None, "this machine", ratios)
    assert "earlier" not in reason
    measured = ratios.find(key_of(tmp_path / "ratios.json"))
    assert measured is not None
    assert first == ("int8" if measured < WORTH_IT else "fp32")
    again, remembered = choose_int8(BLOCK, None, "this machine", ratios)
    assert again == first
    assert "as measured here earlier" in remembered
    assert f"{measured:.2f}" in remembered


@pytest.mark.parametrize(("ratio", "precision"), [(0.31, "int8"), (0.79, "int8"), (0.81, "fp32")])
def test_what_is_remembered_decides(tmp_path: Path, ratios: Ratios, ratio: float, precision: str) -> None:
    choose_int8(BLOCK, None, "this machine", ratios)
    ratios.keep(key_of(tmp_path / "ratios.json"), ratio)
    chosen, reason = choose_int8(BLOCK, None, "this machine", ratios)
    assert chosen == precision
    assert reason.startswith(f"{precision}: ")


def test_another_machine_or_shape_is_measured_anew(tmp_path: Path, ratios: Ratios) -> None:
    choose_int8(BLOCK, None, "this machine", ratios)
    for block, machine in (
        (BLOCK, "another machine"),
        (BlockShape(BLOCK.layers, rows=32), "this machine"),
        (BlockShape(BLOCK.layers[:2], rows=64), "this machine"),
    ):
        assert "earlier" not in choose_int8(block, None, machine, ratios)[1]


def test_a_damaged_memory_is_measured_anew(tmp_path: Path, ratios: Ratios) -> None:
    (tmp_path / "ratios.json").write_text("not JSON", "utf-8")
    assert "earlier" not in choose_int8(BLOCK, None, "this machine", ratios)[1]
    assert "earlier" in choose_int8(BLOCK, None, "this machine", ratios)[1]


def test_a_run_goes_on_in_its_own_precision_whatever_is_remembered_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    settings = settings_for(text, "model.n_embd=32")
    events, _ = train(settings, tmp_path / "run", stop_at=4)
    precision = of(RunStarted, events)[0].precision
    other = {"int8": "fp32", "fp32": "int8"}[precision]
    memory = remembered_precisions()
    if not fast_int8(read_machine().instruction_sets):
        pytest.skip("no fast int8 products: there is nothing to choose")
    memory.keep(key_of(tmp_path / "cache" / "int8-ratios.json"), {"int8": 0.1, "fp32": 2.0}[other])
    anew, _ = train(settings, tmp_path / "anew", stop_at=1)
    assert of(RunStarted, anew)[0].precision == other
    resumed, _ = resume(tmp_path / "run")
    assert of(RunStarted, resumed)[0].precision == precision
