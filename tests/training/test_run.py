"""Complete runs on a small text: training, ends, and that a resumed run is bit-identical."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch
from small_runs import of, record, resume, same, settings_for, train, weights

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError, DivergedError, ResourceError, SettingsError
from cpulm.events import (
    CheckpointSaved,
    Event,
    Notice,
    RunFinished,
    RunStarted,
    SampleMade,
    StepDone,
    Validated,
    from_json,
)
from cpulm.run_dir import RunDir
from cpulm.settings.resolve_settings import resolve
from cpulm.training import run as runs


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    return path


def test_a_run_learns_and_leaves_everything_in_its_folder(text: Path, tmp_path: Path) -> None:
    settings = settings_for(text, "train.steps=60", "train.lr=0.01", "model.dropout=0")
    events, outcome = train(settings, tmp_path / "run")
    assert outcome.reason == "horizon"
    losses = [event.loss for event in of(StepDone, events)]
    assert len(losses) == 60
    assert losses[0] == pytest.approx(math.log(257), abs=0.3)
    assert of(Validated, events)[-1].loss < losses[0] - 1.5
    assert of(Validated, events)[-1].step == 60
    assert of(RunStarted, events)[0].params_total == sum(
        parameter.numel() for parameter in weights(tmp_path / "run" / "latest.pt").values()
    )
    assert of(SampleMade, events)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "settings.yaml",
        "metrics.jsonl",
        "latest.pt",
        "best.pt",
        "lock",
    }
    assert resolve(config=tmp_path / "run" / "settings.yaml") == settings


def test_metrics_hold_every_step_once(text: Path, tmp_path: Path) -> None:
    train(settings_for(text), tmp_path / "run", stop_at=7)
    resume(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    events = [from_json(line) for line in lines]
    assert [event.step for event in of(StepDone, events)] == list(range(1, 13))
    assert [event.step for event in of(Validated, events)] == [5, 10, 12]


def test_a_validation_that_a_crash_cut_off_is_recorded_once(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings_for(text, "checkpoint.every_steps=5", "train.steps=11"), run)
    # As after a crash between the validation of step 10 and the next checkpoint
    (run / "step-00000010.pt").replace(run / "latest.pt")
    resume(run)
    events = [from_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in of(Validated, events)] == [5, 10, 11]
    assert [event.step for event in of(StepDone, events)] == list(range(1, 12))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_is_bit_identical(text: Path, tmp_path: Path, optimizer: str, accumulate: int) -> None:
    settings = settings_for(text, f"train.optimizer={optimizer}", f"train.grad_accum_steps={accumulate}")
    train(settings, tmp_path / "whole")
    for part, stop_at in (("a", 1), ("b", 5), ("c", 8)):
        _, outcome = train(settings, tmp_path / part, stop_at=stop_at)
        assert outcome.reason == "stopped"
        assert checkpoints.load(tmp_path / part / "latest.pt").step == stop_at
        resume(tmp_path / part)
        assert same(tmp_path / "whole" / "latest.pt", tmp_path / part / "latest.pt")


def test_resume_from_an_older_checkpoint_repeats_what_followed(text: Path, tmp_path: Path) -> None:
    settings = settings_for(text, "checkpoint.every_steps=4", "checkpoint.keep=2")
    train(settings, tmp_path / "run")
    assert [path.name for path in sorted((tmp_path / "run").glob("step-*"))] == [
        "step-00000008.pt",
        "step-00000012.pt",
    ]
    before = weights(tmp_path / "run" / "latest.pt")
    resume(tmp_path / "run" / "step-00000008.pt")
    after = weights(tmp_path / "run" / "latest.pt")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [event.step for event in of(StepDone, map(from_json, lines))] == list(range(1, 13))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = settings_for(text, "checkpoint.every_steps=4")
    train(settings, run, stop_at=10)
    train(settings, tmp_path / "whole")
    latest = run / "latest.pt"
    latest.write_bytes(latest.read_bytes()[:5000])
    events, _ = resume(run)
    warnings = [event.message for event in of(Notice, events) if event.level == "warning"]
    assert any("latest.pt" in message and "step-00000008.pt" in message for message in warnings)
    assert same(run / "latest.pt", tmp_path / "whole" / "latest.pt")


def test_a_run_that_its_passes_ended_says_that_time_is_not_what_it_lacks(text: Path, tmp_path: Path) -> None:
    settings = settings_for(text, "train.steps=null", "train.max_time=10m", "train.max_passes=0.5")
    train(settings, tmp_path / "run")
    with pytest.raises(
        SettingsError, match=r"train\.max_passes allows \(0\.5\), so more time would"
    ) as raised:
        resume(tmp_path / "run", max_time=3600.0)
    assert "--steps" in str(raised.value.hint)
    _, outcome = resume(tmp_path / "run", steps=500)
    assert outcome.reason == "horizon"


def test_a_finished_run_can_only_be_extended(text: Path, tmp_path: Path) -> None:
    train(settings_for(text), tmp_path / "run")
    with pytest.raises(SettingsError, match="already finished"):
        resume(tmp_path / "run")
    events, outcome = resume(tmp_path / "run", steps=16)
    assert outcome.reason == "horizon"
    assert [event.step for event in of(StepDone, events)] == [13, 14, 15, 16]
    assert any("train.lr and train.muon_lr go from" in event.message for event in of(Notice, events))
    assert resolve(config=tmp_path / "run" / "settings.yaml").train.steps == 16


def test_horizons_in_tokens_and_epochs(text: Path, tmp_path: Path) -> None:
    events, _ = train(settings_for(text, "train.steps=null", "train.tokens=200"), tmp_path / "tokens")
    assert of(StepDone, events)[-1].tokens == 256
    events, _ = train(settings_for(text, "train.steps=null", "train.epochs=0.5"), tmp_path / "epochs")
    assert of(StepDone, events)[-1].epoch == pytest.approx(0.5, abs=0.03)


def test_a_time_horizon_ends_the_schedule_when_the_time_ends(text: Path, tmp_path: Path) -> None:
    settings = settings_for(
        text,
        "train.steps=null",
        "train.max_time=4s",
        "train.schedule=linear",
        "eval.every=1000",
        "train.patience=0",
    )
    events: list[Event] = []
    a_second_ago = time.monotonic() - 1
    outcome = runs.train(settings, tmp_path / "run", show=events.append, record=record, began=a_second_ago)
    [begun], steps = of(RunStarted, events), of(StepDone, events)
    assert begun.max_time_seconds < 3  # what went before is not of the run's own time
    assert outcome.reason == "horizon"
    assert steps[-1].lr < 0.1 * max(event.lr for event in steps)
    assert of(RunFinished, events)[-1].elapsed_seconds < 6


def test_early_ends(text: Path, tmp_path: Path) -> None:
    _, outcome = train(settings_for(text, "train.target_loss=5.6"), tmp_path / "target")
    assert outcome.reason == "target_loss"
    frozen = settings_for(text, "train.patience=1", "train.lr=1e-30", "train.muon_lr=1e-30")
    events, outcome = train(frozen, tmp_path / "patience")
    assert outcome.reason == "patience"
    assert of(StepDone, events)[-1].step == 10


def test_divergence_stops_before_the_weights_change(text: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    train(settings_for(text, "train.max_rollbacks=0"), run.path, stop_at=1)
    checkpoint = checkpoints.load(run.latest)
    for value in checkpoint.model_state.values():
        value.mul_(1e30)
    checkpoints.save(checkpoint, run.latest)
    seen: list[Event] = []
    with pytest.raises(DivergedError, match=r"step 2.*latest\.pt") as caught:
        runs.resume(run.path, {}, {}, show=seen.append, record=record)
    assert caught.value.exit_code == 4
    assert of(RunFinished, seen)[-1].reason == "diverged"
    state = weights(run.latest)
    assert all(torch.equal(state[name], value) for name, value in checkpoint.model_state.items())


def test_an_invalid_request_is_reported_before_anything_is_written(text: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="taken exists"):
        train(settings_for(text), taken)
    assert (taken / "thesis.txt").read_text() == "mine"
    for more, error, word in (
        (["model.block_size=100000"], SettingsError, "block_size"),
        (["model.n_embd=40000", "model.n_layer=90"], ResourceError, "memory"),
        (["train.steps=null"], SettingsError, "horizon"),
        (["checkpoint.keep=1000000000"], ResourceError, "free"),
    ):
        with pytest.raises(error, match=word):
            train(settings_for(text, *more), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_memory_advice_fits(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        train(settings_for(text, "train.micro_batch_size=1000000"), tmp_path / "run")
    assert "train.micro_batch_size=" in caught.value.hint


def test_changed_data_is_not_mistaken_for_the_same(text: Path, tmp_path: Path, fresh_cache: Path) -> None:
    train(settings_for(text), tmp_path / "run", stop_at=3)
    (fresh_cache / "tokens").rename(tmp_path / "gone")
    text.write_text("something else entirely; " * 100)
    with pytest.raises(DataError, match="gives other tokens than the run was trained on"):
        resume(tmp_path / "run")


def test_a_dry_run_measures_and_writes_nothing(text: Path, tmp_path: Path) -> None:
    ready = runs.prepare_run(settings_for(text), show=lambda event: None, should_stop=lambda: False)
    assert ready.plan.step_seconds is not None
    assert 0 < ready.plan.step_seconds < 5
    assert ready.plan.train_seconds == pytest.approx(12 * ready.plan.step_seconds)
    assert not list(tmp_path.glob("run*"))


def test_measuring_leaves_no_trace_in_the_weights(text: Path) -> None:
    """Dropout draws and steps of the measurement are undone: two rehearsals give the same start."""
    first = runs.prepare_run(settings_for(text), show=lambda event: None, should_stop=lambda: False)
    drawn = torch.rand(3)
    second = runs.prepare_run(settings_for(text), show=lambda event: None, should_stop=lambda: False)
    assert torch.equal(drawn, torch.rand(3))
    for (name, a), (_, b) in zip(
        first.parts.model.named_parameters(), second.parts.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_best_checkpoint_stands_alone(text: Path, tmp_path: Path) -> None:
    train(settings_for(text), tmp_path / "run")
    alone = (tmp_path / "run" / "best.pt").rename(tmp_path / "elsewhere.pt")
    loaded = checkpoints.load(alone)
    assert Tokenizer.from_json(loaded.tokenizer_json).decode([104, 105]) == "hi"


def test_a_run_that_was_killed_before_its_last_validation_validates_on_resume(
    text: Path, tmp_path: Path
) -> None:
    settings = settings_for(text, "checkpoint.every_steps=12", "eval.every=100")
    whole, _ = train(settings, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def die(event: Event) -> None:
        if isinstance(event, CheckpointSaved) and event.step == 12:
            raise Killed

    with pytest.raises(Killed):
        runs.train(settings, tmp_path / "run", show=die, record=record)
    events, outcome = resume(tmp_path / "run")
    assert outcome.reason == "horizon"
    assert not of(StepDone, events)
    assert [event.loss for event in of(Validated, events)] == [event.loss for event in of(Validated, whole)]
    assert same(tmp_path / "run" / "best.pt", tmp_path / "whole" / "best.pt")


def test_a_new_best_model_is_where_a_killed_run_goes_on(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = settings_for(text, "eval.every=5", "train.lr=0.01")
    train(settings, tmp_path / "whole")
    after_best: dict[str, bytes] = {}

    def keep(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 8:  # what a kill -9 in step 9 leaves
            kept = [path for path in run.iterdir() if path != RunDir(run).lock]
            after_best.update((path.name, path.read_bytes()) for path in kept)

    runs.train(settings, run, show=keep, record=record)
    for path in run.iterdir():
        path.unlink()
    for name, content in after_best.items():
        (run / name).write_bytes(content)
    assert checkpoints.load(run / "latest.pt").step == checkpoints.load(run / "best.pt").step == 5
    resume(run)
    assert same(run / "latest.pt", tmp_path / "whole" / "latest.pt")
    events = [from_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in of(StepDone, events)] == list(range(1, 13))
    assert [event.step for event in of(Validated, events)] == [5, 10, 12]
