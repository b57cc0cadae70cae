"""A run of several generations: each is a training of its own, and no border between them loses anything."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from small_runs import of, record, resume, same, settings_for, train, weights

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.train_state import TrainState
from cpulm.errors import SettingsError
from cpulm.events import Event, GenerationStarted, MachineSampled, RunFinished, StepDone, Validated
from cpulm.run_dir import RunDir
from cpulm.settings import Settings
from cpulm.training import run as runs
from cpulm.training.divergence import _last_good
from cpulm.training.horizon import Horizon

TWO = "train.generations=2"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return path


def best_of(path: Path) -> tuple[float | None, int | None]:
    state = checkpoints.load(path).state
    return state.best_loss, state.best_step


def test_each_generation_is_a_training_of_its_own(text: Path, tmp_path: Path) -> None:
    """The first is a run of half the steps, the second one with the next seed and the first as teacher."""
    more = ("eval.every=4",)
    events, outcome = train(settings_for(text, TWO, "train.steps=20", *more), tmp_path / "both")
    half = ("train.steps=10", *more)
    train(settings_for(text, *half), tmp_path / "first")
    taught = (f"train.teacher={tmp_path / 'first'}", "train.seed=1338")
    second, _ = train(settings_for(text, *half, *taught), tmp_path / "second")
    last = weights(tmp_path / "both" / "latest.pt")
    assert all(
        torch.equal(value, last[name]) for name, value in weights(tmp_path / "second" / "latest.pt").items()
    )
    steps = of(StepDone, events)
    assert [step.step for step in steps] == list(range(1, 21))
    assert [step.generation for step in steps] == [1] * 10 + [2] * 10
    assert [step.loss for step in steps[10:]] == [step.loss for step in of(StepDone, second)]
    assert [step.lr for step in steps[10:]] == [step.lr for step in of(StepDone, second)]
    assert [step.epoch for step in steps[10:]] == [step.epoch for step in of(StepDone, second)]
    assert [step.progress for step in steps] == pytest.approx([number / 20 for number in range(1, 21)])
    assert [step.teacher_divergence is None for step in steps] == [True] * 10 + [False] * 10
    assert [event.step for event in of(Validated, events)] == [4, 8, 10, 14, 18, 20]
    (border,) = of(GenerationStarted, events)
    assert (border.step, border.generation, border.generations, border.seed) == (10, 2, 2, 1338)
    assert (border.teacher_loss, border.teacher_step) == best_of(tmp_path / "first" / "best.pt")
    assert (outcome.reason, outcome.step) == ("horizon", 20)


def test_the_result_is_the_best_model_of_all_generations(text: Path, tmp_path: Path) -> None:
    events, _ = train(
        settings_for(text, "train.generations=3", "train.steps=120", "eval.every=20"), tmp_path / "run"
    )
    validated = of(Validated, events)
    best = min(validated, key=lambda event: event.loss)
    assert best_of(tmp_path / "run" / "best.pt") == (best.loss, best.step)
    (finished,) = of(RunFinished, events)
    assert (finished.best_loss, finished.best_step) == (best.loss, best.step)
    lowest = float("inf")
    for event in validated:
        assert event.best == (event.loss < lowest)
        lowest = min(lowest, event.loss)


def test_new_weights_do_not_end_a_generation_by_patience(text: Path, tmp_path: Path) -> None:
    """They are worse than the best of the run for long: patience counts within a generation."""
    settings = settings_for(text, TWO, "train.steps=80", "eval.every=4", "train.patience=2")
    events, outcome = train(settings, tmp_path / "run")
    (border,) = of(GenerationStarted, events)
    after = [event for event in of(Validated, events) if event.generation == 2]
    assert not any(event.best for event in after[:3])
    assert outcome.step > border.step + 12


def test_a_generation_that_ends_early_leaves_its_steps_to_the_next(text: Path, tmp_path: Path) -> None:
    settings = settings_for(
        text, TWO, "train.steps=40", "eval.every=2", "train.patience=1", "train.lr=1", "train.muon_lr=1"
    )
    events, _ = train(settings, tmp_path / "run")
    (border,) = of(GenerationStarted, events)
    assert border.step < 20
    second = [step for step in of(StepDone, events) if step.generation == 2]
    peak = Horizon(steps=40, first_step=border.step)
    assert second[0].progress == pytest.approx((border.step + 1) / 40)
    assert peak.generation_steps == 40 - border.step


@pytest.mark.parametrize(
    "more",
    [[], ["train.grad_accum_steps=2"], ["runtime.kernels=off"], ["train.average_fraction=0.5"]],
    ids=str,
)
@pytest.mark.parametrize("stop_at", [3, 6, 8])
def test_a_resumed_run_is_bit_identical(text: Path, tmp_path: Path, stop_at: int, more: list[str]) -> None:
    settings = settings_for(text, TWO, "model.head_dim=16", *more)
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "part", stop_at=stop_at)
    resume(tmp_path / "part")
    assert same(tmp_path / "whole" / "latest.pt", tmp_path / "part" / "latest.pt")
    assert best_of(tmp_path / "whole" / "best.pt") == best_of(tmp_path / "part" / "best.pt")


class Moments:
    """Ends the process, as a kill does, at one of the moments around the border: at an event, or just before
    or just after a file takes its name."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.counts = False
        self.seen = 0
        self._replace = Path.replace

    def pass_one(self) -> None:
        if self.counts:
            self.seen += 1
            if self.seen == self.left:
                os._exit(9)

    def show(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.counts = event.step == 6
        if not isinstance(event, MachineSampled):  # which come by the clock
            self.pass_one()

    def replace(self, path: Path, target: Path) -> Path:
        self.pass_one()
        found = self._replace(path, target)
        self.pass_one()
        return found


def killed(settings: Settings, out: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Train in a forked process; returns whether it was killed at that moment, or came to its end."""
    moments = Moments(at)
    pid = os.fork()
    if pid == 0:
        try:
            monkeypatch.setattr(Path, "replace", lambda path, target: moments.replace(path, target))
            runs.train(settings, out, show=moments.show, record=record)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has torch loaded")
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.soak)])
def test_a_kill_at_the_border_loses_nothing(
    every: int, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of the moments at which a file is put in its place, or after each fifth one."""
    settings = settings_for(text, TWO, "eval.every=3", "checkpoint.every_steps=2", "checkpoint.keep=1")
    whole = RunDir(tmp_path / "whole")
    train(settings, whole.path)
    moments = 1
    while killed(settings, (run := RunDir(tmp_path / f"run-{moments}")).path, moments, monkeypatch):
        events, outcome = resume(run.path)
        assert outcome.step == 12
        assert same(whole.latest, run.latest), moments
        assert best_of(whole.best) == best_of(run.best), moments
        assert of(StepDone, events)[-1].step == 12
        shutil.rmtree(run.path)
        moments += every
    assert moments > 20
    assert same(whole.latest, run.latest)  # of the process that had no more such moments


def test_training_that_diverges_does_not_go_back_to_the_generation_before(text: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    train(settings_for(text, TWO, "checkpoint.every_steps=5", "checkpoint.keep=9"), run.path)
    assert [checkpoints.load(path).state.generation for path in run.numbered_checkpoints()] == [1, 2]
    seen: list[Event] = []
    newest = _last_good(run, 2, seen.append)
    assert newest is not None
    assert newest.step == 12
    older = _last_good(run, 1, seen.append)
    assert older is not None
    assert older.step <= 6
    assert _last_good(run, 3, seen.append) is None


def test_a_damaged_best_model_leaves_the_next_generation_a_teacher(text: Path, tmp_path: Path) -> None:
    run, seen = RunDir(tmp_path / "run"), list[Event]()

    def spoil(event: Event) -> None:
        seen.append(event)
        if isinstance(event, StepDone) and event.step == 6:
            run.best.write_bytes(b"nothing")

    settings = settings_for(text, TWO, "eval.every=3", "eval.batches=1")
    runs.train(settings, run.path, show=spoil, record=record)
    assert of(StepDone, seen)[-1].step == 12


def test_fewer_steps_than_generations_are_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="12 steps for 13 generations"):
        train(settings_for(text, "train.generations=13"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("horizon", "step", "elapsed", "progress"),
    [
        (Horizon(steps=20, generations_left=2), 5, 0.0, 0.5),
        (Horizon(steps=20, generations_left=2), 10, 0.0, 1.0),
        (Horizon(steps=21, first_step=10), 10, 0.0, 0.0),
        (Horizon(steps=21, first_step=10), 21, 0.0, 1.0),
        (Horizon(steps=20, first_step=4, generations_left=2), 8, 0.0, 0.5),  # the first ended early
        (Horizon(steps=10, first_step=10), 10, 0.0, 1.0),
        (Horizon(seconds=100, generations_left=2), 7, 25.0, 0.5),
        (Horizon(seconds=100, generations_left=2, reserve_seconds=10), 7, 40.0, 1.0),
        (Horizon(seconds=100, first_seconds=60.0, generations_left=2), 7, 70.0, 0.5),
        (Horizon(deadline=1100, first_seconds=60.0, generations_left=2), 7, 70.0, 0.5),  # 30 s are left
    ],
)
def test_generations_share_what_is_left(horizon: Horizon, step: int, elapsed: float, progress: float) -> None:
    assert horizon.generation_progress(step, elapsed, now=1070.0) == pytest.approx(progress)


def test_the_state_of_a_generation_begins_anew_but_for_what_the_run_counts() -> None:
    old = TrainState(
        step=40, tokens=400, best_loss=2.0, best_step=30, stale_validations=4, saves=7, skipped=[3]
    )
    old.generation_best_loss, old.losses.mean_loss = 2.0, 2.5
    new = old.next_generation("digest", 12.5)
    assert (new.generation, new.first_step, new.first_seconds, new.generation_steps) == (2, 40, 12.5, 0)
    assert (new.step, new.tokens, new.best_loss, new.best_step, new.saves) == (40, 400, 2.0, 30, 7)
    assert (new.stale_validations, new.skipped, new.generation_best_loss, new.losses.mean_loss) == (
        0,
        [],
        None,
        None,
    )
    assert new.validated_step is None
    assert new.teacher == "digest"
