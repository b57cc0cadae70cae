"""Divergence: a run rolls back to its last good checkpoint, skips the data, and continues."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import of, resume, same, settings_for, train, weights

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.data.loader import Loader
from cpulm.data.prepare import prepare
from cpulm.errors import DivergedError
from cpulm.events import Event, RolledBack, RunFinished, StepDone, from_json
from cpulm.model.transformer import Transformer
from cpulm.settings import Settings


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    return path


def poison(monkeypatch: pytest.MonkeyPatch, settings: Settings, batches: set[int], what: float) -> None:
    """Let the loss of these of the loader's batches come out as ``what`` more than it is."""
    train = settings.train
    tokens = prepare(settings.data, emit=lambda _: None, should_stop=lambda: False)
    loader = Loader(tokens.train, settings.model.block_size, train.micro_batch_size, train.seed)
    bad = [loader.batch(batch)[0] for batch in sorted(batches)]
    forward = Transformer.forward

    def poisoned(self: Transformer, idx: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        out = forward(self, idx, *args, **options)
        if self.training and any(torch.equal(idx, x) for x in bad):
            return out + what
        return out

    monkeypatch.setattr(Transformer, "forward", poisoned)


def recorded(run: Path) -> list[Event]:
    return [from_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_data_that_makes_the_loss_not_finite_is_left_out(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(text, "checkpoint.every_steps=5")
    poison(monkeypatch, settings, {7}, math.nan)
    train(settings, tmp_path / "run")
    (back,) = of(RolledBack, recorded(tmp_path / "run"))
    assert (back.step, back.to_step, back.skipped_batches, back.count) == (7, 5, (7,), 1)
    assert back.reason == "the loss is nan"
    steps = [event.step for event in of(StepDone, recorded(tmp_path / "run"))]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9, 10, 11, 12]

    # The same course by hand: stopped at 5, told to leave the batch out, and resumed.
    monkeypatch.undo()
    train(settings, tmp_path / "by-hand", stop_at=5)
    stopped = checkpoints.load(tmp_path / "by-hand" / "latest.pt")
    stopped.state.skipped = [7]
    checkpoints.save(stopped, tmp_path / "by-hand" / "latest.pt")
    resume(tmp_path / "by-hand")
    assert same(tmp_path / "run" / "latest.pt", tmp_path / "by-hand" / "latest.pt")


def test_what_was_left_out_stays_left_out_after_a_stop(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(text, "checkpoint.every_steps=5", "train.grad_accum_steps=2")
    poison(monkeypatch, settings, {12}, math.inf)
    train(settings, tmp_path / "whole")
    events, _ = train(settings, tmp_path / "parts", stop_at=8)
    (back,) = of(RolledBack, events)
    assert back.skipped_batches == (12, 13)  # an update's batches are judged together
    events, _ = resume(tmp_path / "parts")
    assert not of(RolledBack, events)
    assert same(tmp_path / "whole" / "latest.pt", tmp_path / "parts" / "latest.pt")


def test_a_loss_that_jumps_and_stays_is_a_spike(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(text, "checkpoint.every_steps=4", "train.steps=20", "train.spike_nats=3")
    poison(monkeypatch, settings, set(range(10, 15)), 5.0)
    train(settings, tmp_path / "run")
    (back,) = of(RolledBack, recorded(tmp_path / "run"))
    # The checkpoint of step 12 was made amid the spike, so the one before it is taken: the best model's.
    assert (back.step, back.to_step) == (15, 10)
    assert back.skipped_batches == (10, 11, 12, 13, 14)
    assert "the loss stayed 3 nats above its mean" in back.reason
    assert checkpoints.load(tmp_path / "run" / "latest.pt").step == 20


def test_repeated_divergence_ends_the_run(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(text, "checkpoint.every_steps=5", "train.max_rollbacks=2", "eval.every=100")
    poison(monkeypatch, settings, set(range(7, 40)), math.nan)
    seen: list[Event] = []
    with pytest.raises(DivergedError, match="diverged in step 8 after 2 rollbacks") as caught:
        train(settings, tmp_path / "run", seen=seen)
    assert caught.value.exit_code == 4
    assert "latest.pt" in caught.value.message
    assert [event.count for event in of(RolledBack, seen)] == [1, 2]
    assert of(RunFinished, seen)[0].reason == "diverged"
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run" / "latest.pt").values())


def test_a_new_best_model_resets_the_count_of_rollbacks(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(
        text, "checkpoint.every_steps=2", "train.max_rollbacks=1", "train.steps=30", "train.lr=0.01"
    )
    poison(monkeypatch, settings, {3, 12, 22}, math.nan)
    events, outcome = train(settings, tmp_path / "run")
    assert outcome.reason == "horizon"
    assert [event.count for event in of(RolledBack, events)] == [1, 1, 1]


def test_the_best_model_is_a_checkpoint_to_go_back_to(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(text, "checkpoint.every_steps=100", "eval.every=5", "train.steps=12")
    poison(monkeypatch, settings, {7}, math.nan)
    events, _ = train(settings, tmp_path / "run")
    (back,) = of(RolledBack, events)
    assert back.to_step == 5
    best = checkpoints.load(tmp_path / "run" / "best.pt").state
    last = checkpoints.load(tmp_path / "run" / "latest.pt").state
    assert best.best_loss == last.best_loss is not None


def test_no_rollback_if_it_is_switched_off(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(text, "train.max_rollbacks=0")
    poison(monkeypatch, settings, {3}, math.nan)
    with pytest.raises(DivergedError, match="diverged in step 4: the loss is nan"):
        train(settings, tmp_path / "run")
