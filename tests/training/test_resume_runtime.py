"""The differences of the runtime that a resumed run reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import of, resume, settings_for, train

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.events import Notice, RunStarted
from cpulm.execution.runtime import MATH_VARIABLES
from cpulm.training.resume_runtime import NAMES, differences


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in MATH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    train(settings_for(text), tmp_path / "run", stop_at=4)
    return tmp_path / "run"


def rewrite(path: Path, **facts: str) -> None:
    """The checkpoint as one whose run had other ``facts``."""
    checkpoint = checkpoints.load(path)
    checkpoint.runtime.update(facts)
    checkpoints.save(checkpoint, path)


def warnings(path: Path) -> list[str]:
    events, outcome = resume(path)
    assert outcome.reason == "horizon"
    said = [event.message for event in of(Notice, events) if event.level == "warning"]
    return [message for message in said if "bit-identical" in message]


def test_the_same_machine_says_nothing(run: Path) -> None:
    assert warnings(run) == []


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"torch": "1.0"}, [f"torch 1.0 -> {torch.__version__}"]),
        (
            {"cpu_capability": "VSX"},
            [f"instruction set that torch uses VSX -> {torch.backends.cpu.get_cpu_capability()}"],
        ),
        ({"cpulm": "0.0.1", "device_name": "another CPU"}, ["cpulm 0.0.1 ->", "processor another CPU ->"]),
        ({"math_variables": "MKL_CBWR=COMPATIBLE"}, ["environment MKL_CBWR=COMPATIBLE -> none"]),
    ],
)
def test_what_differs_is_named(run: Path, facts: dict[str, str], named: list[str]) -> None:
    rewrite(run / "latest.pt", **facts)
    (message,) = warnings(run)
    assert [name for name in named if name in message] == named
    assert message.count("->") == len(named)


def test_a_checkpoint_of_an_earlier_version_has_nothing_to_compare(run: Path) -> None:
    path = run / "latest.pt"
    checkpoint = checkpoints.load(path)
    recorded = ("device", "threads", "precision", "compiled", "kernels")
    checkpoint.runtime = {name: checkpoint.runtime[name] for name in recorded}
    checkpoints.save(checkpoint, path)
    assert warnings(run) == []


def test_every_fact_is_compared_but_the_reason(run: Path) -> None:
    facts = checkpoints.load(run / "latest.pt").runtime
    assert set(facts) == {*NAMES, "precision_reason"}
    changed = {**facts, "threads": 7, "kernels": not facts["kernels"]}
    assert len(differences(changed, facts)) == 2


@pytest.mark.parametrize(
    ("kernels", "precision", "named"), [(True, "int8", 0), (True, "bf16", 1), (False, "fp32", 1)]
)
def test_threads_count_only_without_the_kernels(kernels: bool, precision: str, named: int) -> None:
    now = {"threads": 2, "kernels": kernels, "precision": precision}
    assert len(differences({**now, "threads": 4}, now)) == named


def test_the_reason_for_the_precision_outlives_the_resumption(run: Path) -> None:
    rewrite(run / "latest.pt", precision_reason="a table said so")
    events, _ = resume(run)
    (started,) = of(RunStarted, events)
    assert started.precision_reason == "a table said so"
    assert any("when the run began: a table said so" in note for note in started.notes)
    assert "eager: kept from the start of the run" in started.notes
    assert not any("requested" in note for note in started.notes)
