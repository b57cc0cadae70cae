"""Runs with the outer step: it changes the training, and such a run is resumed bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import resume, same, settings_for, train, weights

from cpulm.checkpoints import checkpoint as checkpoints

ROUNDS = ("train.outer_steps=4", "checkpoint.every_steps=1")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    return path


def test_the_outer_step_changes_a_run_and_a_round_beyond_its_end_does_not(text: Path, tmp_path: Path) -> None:
    finals = {}
    for name, every in (("without", 0), ("with", 4), ("beyond", 13)):
        train(settings_for(text, f"train.outer_steps={every}"), tmp_path / name)
        finals[name] = weights(tmp_path / name / "latest.pt")
    names = list(finals["without"])
    assert all(torch.equal(finals["without"][name], finals["beyond"][name]) for name in names)
    assert not any(torch.equal(finals["without"][name], finals["with"][name]) for name in names)


@pytest.mark.parametrize("stop_at", [3, 4, 9])
def test_a_run_resumed_within_a_round_or_between_two_is_bit_identical(
    text: Path, tmp_path: Path, stop_at: int
) -> None:
    settings = settings_for(text, *ROUNDS)
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "run", stop_at=stop_at)
    resume(tmp_path / "run")
    whole, resumed = (checkpoints.load(tmp_path / name / "latest.pt") for name in ("whole", "run"))
    assert same(tmp_path / "whole" / "latest.pt", tmp_path / "run" / "latest.pt")
    pairs = zip(
        whole.optimizer_states[-1]["state"].values(),
        resumed.optimizer_states[-1]["state"].values(),
        strict=True,
    )
    for one, other in pairs:
        assert one.keys() == {"step", "anchor", "velocity"}
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_first_round_begins_with_the_weights_of_a_trained_model(text: Path, tmp_path: Path) -> None:
    train(settings_for(text), tmp_path / "first")
    begins = (f"train.init_from={tmp_path / 'first'}", "train.outer_steps=1", "train.steps=1")
    rates = ("train.lr=1e-9", "train.muon_lr=1e-9", "train.outer_momentum=0")
    train(settings_for(text, *begins, *rates), tmp_path / "second")
    before, after = weights(tmp_path / "first" / "best.pt"), weights(tmp_path / "second" / "latest.pt")
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)
