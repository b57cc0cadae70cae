"""A run that averages its weights: validations of both, the better in best.pt, and exact resumption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from small_runs import of, resume, same, settings_for, train, weights

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.load_model import load_model
from cpulm.data.loader import val_batches
from cpulm.data.tokenfile import TokenFolder
from cpulm.estimate import validation_schedule
from cpulm.events import Validated
from cpulm.optim.weight_average import EVERY
from cpulm.settings import Settings

STEPS = 6 * EVERY
"""The average is as new as the weights when both are validated for the last time."""
AVERAGED = ("train.average_fraction=0.2", f"train.steps={STEPS}", f"eval.every={EVERY}")
RESTLESS = ("train.schedule=constant", "train.lr=0.1", "train.muon_lr=0.1")
"""At such rates the averaged weights become better than the newest, in every precision."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    return path


def restless(text: Path, *more: str) -> Settings:
    return settings_for(text, *AVERAGED, *RESTLESS, *more)


def averages(path: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(path).average_state


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_average_does_not_change_the_training(text: Path, tmp_path: Path) -> None:
    train(restless(text), tmp_path / "with")
    train(restless(text, "train.average_fraction=null"), tmp_path / "without")
    assert equal(weights(tmp_path / "with" / "latest.pt"), weights(tmp_path / "without" / "latest.pt"))
    assert not averages(tmp_path / "without" / "latest.pt")


@pytest.mark.parametrize("fewest", [8192, 16])
def test_the_better_weights_are_the_best_model(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewest: int
) -> None:
    """Also if trained and averaged weights are compared on an eighth of the batches only."""
    monkeypatch.setattr(validation_schedule, "_FEWEST_COMPARED_TOKENS", fewest)
    events, _ = train(restless(text), tmp_path / "run")
    validated = of(Validated, events)
    assert all(one.loss == min(one.trained_loss, one.averaged_loss) for one in validated)
    best = min(validated, key=lambda one: one.loss)
    assert best.average_is_better

    stored = checkpoints.load(tmp_path / "run" / "best.pt")
    assert stored.step == best.step
    assert stored.weights is stored.average_state
    assert not equal(stored.average_state, stored.model_state)
    record = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert equal(record["model"], stored.average_state)  # what other programs read

    model, _, checkpoint = load_model(tmp_path / "run", warn=pytest.fail)
    tokens = TokenFolder.open(Path(checkpoint.data["path"]))
    with torch.inference_mode():
        batches = list(val_batches(tokens.val, 16, 4))
        counts = [int((y != -100).sum()) for _, y in batches]
        losses = [float(model(x, targets=y)) for x, y in batches]
    mean = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    assert mean == pytest.approx(best.averaged_loss, rel=1e-5)
    assert best.tokens == sum(counts)


def test_weights_that_are_better_than_their_average_are_the_best_model(text: Path, tmp_path: Path) -> None:
    slow = ("train.lr=0.003", "train.muon_lr=0.003", "train.average_fraction=1")
    events, _ = train(restless(text, *slow), tmp_path / "run")
    assert not of(Validated, events)[-1].average_is_better
    stored = checkpoints.load(tmp_path / "run" / "best.pt")
    assert stored.weights is stored.model_state
    assert stored.average_state


@pytest.mark.parametrize("stop_at", [EVERY - 1, EVERY, STEPS - 1])
def test_a_resumed_run_averages_bit_for_bit(text: Path, tmp_path: Path, stop_at: int) -> None:
    train(restless(text), tmp_path / "whole")
    train(restless(text), tmp_path / "run", stop_at=stop_at)
    resume(tmp_path / "run")
    for name in ("latest.pt", "best.pt"):
        assert same(tmp_path / "run" / name, tmp_path / "whole" / name)
        assert equal(averages(tmp_path / "run" / name), averages(tmp_path / "whole" / name))


def test_a_run_continues_from_the_weights_behind_a_best_average(text: Path, tmp_path: Path) -> None:
    """best.pt is to be used with its average, and training goes on where it was."""
    train(restless(text, f"train.steps={STEPS + 3}"), tmp_path / "whole")
    train(restless(text), tmp_path / "run")
    assert checkpoints.load(tmp_path / "run" / "best.pt").state.average_is_better
    resume(tmp_path / "run" / "best.pt", steps=STEPS + 3)
    assert equal(weights(tmp_path / "run" / "latest.pt"), weights(tmp_path / "whole" / "latest.pt"))
