"""The precision that ``auto`` chooses, and that a resumed run keeps it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cpus import CPUS
from small_runs import of, resume, settings_for, train

from cpulm.events import RunStarted
from cpulm.execution.runtime import choose_runtime
from cpulm.settings import ModelSettings, RuntimeSettings
from cpulm.system import machine as machines
from cpulm.system.machine import read_machine


def pretend(monkeypatch: pytest.MonkeyPatch, cpu: str) -> None:
    """Read this machine's CPU as one with the instruction sets of ``cpu``."""
    real = machines.read_cpu()
    monkeypatch.setattr(machines, "read_cpu", lambda: replace(real, instruction_sets=CPUS[cpu]))


@pytest.fixture(autouse=True)
def _auto(monkeypatch: pytest.MonkeyPatch, kernels_of_this_cpu: None) -> None:
    """These tests are about the choice, which the suite otherwise makes for its toy runs."""
    monkeypatch.delenv("CPULM_RUNTIME__PRECISION")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    return path


@pytest.mark.parametrize(
    ("began", "wide", "later", "precisions"),
    [
        ("VNNI and BF16", 128, "VNNI and BF16", ("int8", "int8")),
        ("AVX2", 128, "VNNI", ("fp32", "fp32")),
        ("VNNI", 128, "AVX2", ("int8", "fp32")),
        ("VNNI and BF16", 16, "VNNI and BF16", ("fp32", "fp32")),
    ],
)
def test_a_resumed_run_keeps_its_precision_where_the_cpu_has_it(
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    began: str,
    wide: int,
    later: str,
    precisions: tuple[str, str],
) -> None:
    pretend(monkeypatch, began)
    settings = settings_for(text, f"model.n_embd={wide}")
    assert settings.runtime.precision == "auto"
    events, _ = train(settings, tmp_path / "run", stop_at=4)
    pretend(monkeypatch, later)
    resumed, _ = resume(tmp_path / "run")
    assert tuple(of(RunStarted, part)[0].precision for part in (events, resumed)) == precisions


@pytest.mark.parametrize("cpu", CPUS)
def test_the_choice_is_said_with_its_reason(cpu: str) -> None:
    machine = replace(read_machine(), instruction_sets=CPUS[cpu])
    for width in (16, 512):
        model = ModelSettings(n_embd=width, n_head=1)
        chosen = choose_runtime(RuntimeSettings(device="cpu", kernels="off"), machine, model)
        (note,) = [note for note in chosen.notes if note.startswith(f"{chosen.precision}: ")]
        assert len(note) > len("int8: ")


def test_nothing_but_training_is_computed_in_less_than_fp32() -> None:
    machine = replace(read_machine(), instruction_sets=CPUS["VNNI and BF16"])
    assert choose_runtime(RuntimeSettings(device="cpu"), machine).precision == "fp32"
