"""``train.document_mask`` in complete runs: its effect, a resumption, and data without documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_runs import of, resume, same, settings_for, train, weights

from cpulm.checkpoints.load_model import load_model
from cpulm.data.loader import val_batch_count, val_batches
from cpulm.data.tokenfile import TokenFolder
from cpulm.evaluation.validation_loss import evaluate
from cpulm.events import Event, Notice, RunStarted, StepDone, Validated
from cpulm.interrupts import StopRequest
from cpulm.settings import Settings
from cpulm.system.machine import read_machine

MASKED = "train.document_mask=true"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Short documents, so many that they are held out whole: every one has its mark."""
    path = tmp_path / "lines.jsonl"
    animals = ("cat", "rat", "bat")
    rows = [{"text": f"{number} {animals[number % 3]}s sat"} for number in range(1, 400)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in of(StepDone, events)]


def warned(events: list[Event]) -> bool:
    return any("document_mask has no effect" in event.message for event in of(Notice, events))


@pytest.mark.parametrize("more", [[], ["runtime.kernels=off"], ["model.activation_checkpointing=true"]])
def test_a_resumed_run_is_bit_identical(lines: Path, tmp_path: Path, more: list[str]) -> None:
    settings = settings_for(lines, MASKED, "model.head_dim=16", *more)
    whole, _ = train(settings, tmp_path / "whole")
    train(settings, tmp_path / "part", stop_at=5)
    resume(tmp_path / "part")
    assert same(tmp_path / "whole" / "latest.pt", tmp_path / "part" / "latest.pt")
    assert not warned(whole)


def test_it_changes_what_is_learnt_and_validated(lines: Path, tmp_path: Path) -> None:
    plain, masked = (
        train(settings_for(lines, "model.dropout=0", mask), tmp_path / mask)[0]
        for mask in ("train.document_mask=false", MASKED)
    )
    assert all(a != b for a, b in zip(losses(plain), losses(masked), strict=True))
    assert of(Validated, plain)[-1].loss != of(Validated, masked)[-1].loss


def test_a_run_is_validated_and_judged_afterwards_with_its_own_mask(lines: Path, tmp_path: Path) -> None:
    settings = settings_for(lines, MASKED, "train.muon_lr=0.2", "train.lr=0.05", "model.dropout=0")
    events, _ = train(settings, tmp_path / "run")
    expected = of(Validated, events)[-1].loss
    assert validation_loss(tmp_path / "run", settings) == pytest.approx(expected, rel=1e-5)
    assert validation_loss(tmp_path / "run", settings, masked=False) != pytest.approx(expected, rel=1e-5)


def validation_loss(run: Path, settings: Settings, masked: bool = True) -> float:
    model, _, checkpoint = load_model(run / "latest.pt", warn=lambda _: None)
    if not masked:
        model.mask_documents(None)
    tokens = TokenFolder.open(Path(checkpoint.data["path"]))
    size, block = settings.train.micro_batch_size, settings.model.block_size
    with StopRequest() as stop:
        found = evaluate(
            model,
            val_batches(tokens.val, block, size),
            val_batch_count(tokens.val, block, size),
            emit=lambda _: None,
            should_stop=stop,
        )
    assert found is not None
    return found.loss


def test_in_a_single_document_it_says_so_and_trains_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "1.txt").write_text("the cat sat on the mat and saw the rat.\n" * 30)
    plain, _ = train(settings_for(folder), tmp_path / "plain")
    masked, _ = train(settings_for(folder, MASKED), tmp_path / "masked")
    assert warned(masked)
    assert not warned(plain)
    before, after = (weights(tmp_path / name / "latest.pt") for name in ("plain", "masked"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    (folder / "2.txt").write_text("the cat sat on the mat and saw the rat.\n" * 30)
    assert not warned(train(settings_for(folder, MASKED), tmp_path / "two")[0])


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.skipif(read_machine().compiler is None, reason="no C++ compiler")
@pytest.mark.usefixtures("scalar_compile")
def test_compiled_and_eager_steps_agree(lines: Path, tmp_path: Path) -> None:
    plain = [MASKED, "model.dropout=0", "model.n_layer=1", "train.steps=4"]
    eager, _ = train(settings_for(lines, *plain), tmp_path / "eager")
    compiled, _ = train(settings_for(lines, *plain, "runtime.compile=on"), tmp_path / "compiled")
    assert of(RunStarted, compiled)[0].compiled
    assert losses(eager) == pytest.approx(losses(compiled), rel=1e-4)
