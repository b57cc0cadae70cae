"""A run with ``train.teacher``: what it learns, a resumption, and teachers that cannot teach."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import of, record, resume, same, settings_for, train, weights

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.errors import DataError, SettingsError
from cpulm.events import Event, Notice, StepDone, Validated
from cpulm.run_dir import RunDir
from cpulm.training import run as runs
from cpulm.training.teaching import keep_teacher, kept_teacher

TEXT = "the quick brown fox jumps over the lazy dog. " * 100


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def teacher(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another width, better than what twelve updates reach."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    train(settings_for(text, "model.n_embd=32", "train.steps=80", "eval.every=80"), out)
    return out


def taught_by(teacher: Path, *more: str) -> list[str]:
    return [f"train.teacher={teacher}", *more]


def kept_file(run: Path) -> Path:
    (found,) = run.glob("teacher-*.pt")
    return found


@pytest.mark.parametrize("more", [[], ["runtime.kernels=off"], ["train.grad_accum_steps=2"]], ids=str)
def test_a_resumed_run_is_bit_identical(text: Path, teacher: Path, tmp_path: Path, more: list[str]) -> None:
    settings = settings_for(text, *taught_by(teacher, "model.head_dim=16", *more))
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "part", stop_at=5)
    resume(tmp_path / "part")
    assert same(tmp_path / "whole" / "latest.pt", tmp_path / "part" / "latest.pt")


def test_the_model_comes_closer_to_its_teacher_and_says_its_loss_on_the_text(
    text: Path, teacher: Path, tmp_path: Path
) -> None:
    more = ("model.dropout=0", "train.steps=60", "eval.every=60")
    taught, _ = train(settings_for(text, *taught_by(teacher, *more)), tmp_path / "taught")
    alone, _ = train(settings_for(text, *more), tmp_path / "alone")
    steps, without = of(StepDone, taught), of(StepDone, alone)
    assert steps[-1].teacher_divergence < 0.5 * steps[0].teacher_divergence
    assert steps[0].loss == pytest.approx(without[0].loss, rel=1e-5)  # of the same weights, on the same text
    assert steps[-1].loss != without[-1].loss
    assert {step.teacher_divergence for step in without} == {None}


@pytest.mark.parametrize("more", ["train.teacher_weight=0.9", "train.teacher_temperature=1"])
def test_weight_and_temperature_change_the_weights(
    text: Path, teacher: Path, tmp_path: Path, more: str
) -> None:
    short = ("model.dropout=0", "train.steps=2", "eval.every=2")
    for name, settings in (("plain", short), ("changed", (*short, more))):
        train(settings_for(text, *taught_by(teacher, *settings)), tmp_path / name)
    plain, other = (weights(tmp_path / name / "latest.pt") for name in ("plain", "changed"))
    assert not torch.equal(plain["wte.weight"], other["wte.weight"])


def test_the_run_keeps_its_teacher(text: Path, teacher: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(teacher, elsewhere)
    run = tmp_path / "run"
    train(settings_for(text, *taught_by(elsewhere)), run, stop_at=5)
    shutil.rmtree(elsewhere)
    kept = checkpoints.load(kept_file(run))
    best = weights(teacher / "best.pt")
    assert all(torch.equal(value, best[name]) for name, value in kept.model_state.items())
    assert not kept.optimizer_states
    events, _ = resume(run)
    assert of(StepDone, events)[-1].teacher_divergence is not None


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_another_model(path: Path) -> None:
    checkpoint = checkpoints.load(path)
    checkpoint.model_state["norm.weight"] += 1.0
    checkpoints.save(checkpoint, path)


@pytest.mark.parametrize("harm", [Path.unlink, spoil, replace_by_another_model])
def test_a_run_that_lost_its_teacher_continues_only_if_asked(
    text: Path, teacher: Path, tmp_path: Path, harm: object
) -> None:
    run = tmp_path / "run"
    train(settings_for(text, *taught_by(teacher)), run, stop_at=5)
    before = (run / "latest.pt").read_bytes()
    assert callable(harm)
    harm(kept_file(run))
    with pytest.raises(DataError, match="teacher") as refused:
        resume(run)
    assert "--without-teacher" in refused.value.hint
    assert (run / "latest.pt").read_bytes() == before
    seen: list[Event] = []
    runs.resume(run, {}, {}, show=seen.append, record=record, without_teacher=True)
    assert any("without a teacher" in notice.message for notice in of(Notice, seen))
    assert {step.teacher_divergence for step in of(StepDone, seen)} == {None}
    assert of(Validated, seen)
    assert not checkpoints.load(run / "latest.pt").state.teacher


def test_without_teacher_keeps_a_teacher_that_is_there(text: Path, teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings_for(text, *taught_by(teacher)), run, stop_at=5)
    seen: list[Event] = []
    runs.resume(run, {}, {}, show=seen.append, record=record, without_teacher=True)
    assert of(StepDone, seen)[-1].teacher_divergence is not None


def test_a_teacher_that_cannot_teach_is_refused_before_the_run_begins(
    text: Path, teacher: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    damaged = tmp_path / "damaged.pt"
    shutil.copy(teacher / "best.pt", damaged)
    spoil(damaged)
    refused = (
        (["train.teacher=nowhere.pt"], DataError, "does not exist", ""),
        ([f"train.teacher={damaged}"], DataError, "is damaged", ""),
        (taught_by(teacher, "data.tokenizer=char"), DataError, "another tokenizer", "--tokenizer"),
        (taught_by(teacher, "model.block_size=32"), SettingsError, "block size of 16", "--block-size 16"),
    )
    for more, kind, message, hint in refused:
        with pytest.raises(kind, match=message) as error:
            train(settings_for(text, *more), run)
        assert hint in error.value.hint
        assert not run.exists()


def test_averaged_weights_that_are_the_better_ones_are_kept_and_known_again(
    teacher: Path, tmp_path: Path
) -> None:
    trained = checkpoints.load(teacher / "best.pt")
    averaged = {name: 0.5 * value for name, value in trained.model_state.items()}
    state = replace(trained.state, average_is_better=True)
    digest = keep_teacher(replace(trained, average_state=averaged, state=state), RunDir(tmp_path))
    student = replace(trained, state=replace(trained.state, teacher=digest))
    kept = kept_teacher(RunDir(tmp_path), student, lambda _: None)
    assert kept is not None
    assert all(torch.equal(value, averaged[name]) for name, value in kept.weights.items())
