"""A text too small for its run, and a time too short for one update."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from small_runs import of, record, settings_for, train

from cpulm.errors import SettingsError
from cpulm.events import Event, Notice, Validated
from cpulm.settings.resolve_settings import resolve
from cpulm.training import run as runs


def test_a_horizon_in_time_has_patience_by_default() -> None:
    def stale(*assignments: str) -> int | None:
        return resolve(preset="tiny", assignments=assignments).train.stale_validations

    assert stale("train.max_time=8h") == stale("train.until=2040-01-01T07:00:00+01:00") == 10
    assert stale("train.max_time=8h", "train.patience=0") is None
    assert stale("train.steps=100") is None
    assert stale("train.steps=100", "train.patience=3") == 3


def test_a_time_that_ends_before_the_first_update_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    settings = settings_for(text, "train.steps=null", "train.max_time=0.001")
    with pytest.raises(SettingsError, match=r"--max-time 0\.0s is over before the first update") as raised:
        train(settings, tmp_path / "run")
    assert re.fullmatch(r"give it more time: --max-time \d+m", raised.value.hint)
    assert not (tmp_path / "run").exists()


def test_overfitting_is_a_warning_while_the_run_trains(tmp_path: Path) -> None:
    text = tmp_path / "noise.txt"
    text.write_text("".join(random.Random(1).choices("abcdefgh", k=400)))
    few = ["data.val_fraction=0.3", "train.micro_batch_size=16", "train.lr=0.02", "train.schedule=constant"]
    wide = ["model.n_embd=64", "model.dropout=0", "runtime.allow_sleep=true"]
    settings = settings_for(text, "train.steps=160", "eval.every=20", *few, *wide)
    events, outcome = train(settings, tmp_path / "run")
    assert outcome.risen
    assert [event.whole for event in of(Validated, events)] == [True] * 8
    warnings = [event.message for event in of(Notice, events) if event.level == "warning"]
    best = min(of(Validated, events), key=lambda validated: validated.loss)
    assert any("146 passes over the text of 281 tokens" in warning for warning in warnings)
    risen = [warning for warning in warnings if warning.startswith("Overfitting: since step")]
    assert len(risen) == 1
    assert f"since step {best.step:,} the validation loss has risen from {best.loss:.4f}" in risen[0]


@pytest.mark.parametrize("lines", [[], ["plan: two layers"]])
def test_a_plan_does_not_warn_of_the_passes_that_it_chose(lines: list[str], tmp_path: Path) -> None:
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    soon = ["train.target_loss=9", "eval.every=1"]
    settings = settings_for(text, "train.steps=null", "train.epochs=100", "model.dropout=0", *soon)
    seen: list[Event] = []
    runs.train(settings, tmp_path / "run", show=seen.append, record=record, explain=lambda _: lines)
    messages = [event.message for event in of(Notice, seen) if event.level == "warning"]
    assert any("100 passes over the text of" in message for message in messages) == (not lines)


def test_a_validation_of_fewer_batches_than_the_split_has_is_a_part(tmp_path: Path) -> None:
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    for batches, whole in ((2, False), (40, True)):
        settings = settings_for(text, "train.steps=2", f"eval.batches={batches}")
        events, outcome = train(settings, tmp_path / f"run{batches}")
        assert {event.whole for event in of(Validated, events)} == {whole}
        assert not outcome.risen
