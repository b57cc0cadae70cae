"""Disks that fail: a run continues in memory, keeps its checkpoints, and stops only as a last resort."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_runs import of, record, resume, same, settings_for, train, watching

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.errors import ResourceError
from cpulm.events import CheckpointSaved, Event, Notice, RunFinished
from cpulm.training import checkpointer
from cpulm.training import run as runs

needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to refuse a write")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    return path


@contextmanager
def _restored() -> Iterator[Callable[[bool], None]]:
    """A switch that makes the system refuse files of more than ten thousand bytes, as a full disk does."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def refuse(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000 if on else before[0], before[1]))

    try:
        yield refuse
    finally:
        refuse(False)


def at(steps: dict[int, Callable[[], None]]) -> Callable[[int], None]:
    return lambda step: steps.get(step, lambda: None)()


def warnings(events: list[Event]) -> list[str]:
    return [event.message for event in of(Notice, events) if event.level == "warning"]


@needs_limits
def test_a_disk_that_is_full_for_a_while_costs_nothing(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointer, "RETRY_SECONDS", 0.0)
    settings = settings_for(text, "checkpoint.every_steps=4", "eval.every=100")
    train(settings, tmp_path / "calm")
    seen: list[Event] = []
    with _restored() as refuse:
        after = at({3: lambda: refuse(True), 5: lambda: refuse(False)})
        outcome = runs.train(settings, tmp_path / "run", show=watching(after, seen), record=record)
    assert outcome.reason == "horizon"
    (warning,) = [line for line in warnings(seen) if "CHECKPOINT" in line]
    assert "File too large" in warning
    assert "of step 0" in warning
    assert [event.step for event in of(CheckpointSaved, seen) if event.role == "latest"] == [0, 5, 8, 12, 12]
    assert same(tmp_path / "run" / "latest.pt", tmp_path / "calm" / "latest.pt")
    assert not list((tmp_path / "run").glob(".*.tmp"))


@needs_limits
def test_a_disk_that_stays_full_stops_the_run_and_keeps_what_it_has(text: Path, tmp_path: Path) -> None:
    settings = settings_for(text, "checkpoint.every_steps=3", "eval.every=100")
    train(settings, tmp_path / "calm")
    seen: list[Event] = []
    with _restored() as refuse:
        after = at({4: lambda: refuse(True)})
        with pytest.raises(ResourceError, match="no checkpoint could be written") as caught:
            runs.train(settings, tmp_path / "run", show=watching(after, seen), record=record)
    assert caught.value.exit_code == 5
    assert "of step 3" in caught.value.message
    assert of(RunFinished, seen)[0].reason == "no_room"
    assert of(RunFinished, seen)[0].step == 9  # missed at 6, given up when the next was due
    assert checkpoints.load(tmp_path / "run" / "latest.pt").step == 3
    resume(tmp_path / "run")
    assert same(tmp_path / "run" / "latest.pt", tmp_path / "calm" / "latest.pt")


@needs_limits
def test_the_last_checkpoint_waits_for_disk_space(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Event] = []
    settings = settings_for(text, "eval.every=100", "train.target_loss=null")
    with _restored() as refuse:

        def show(event: Event) -> None:
            watching(at({12: lambda: refuse(True)}), seen)(event)
            if isinstance(event, Notice) and "last checkpoint" in event.message:
                refuse(False)

        outcome = runs.train(settings, tmp_path / "run", show=show, record=record)
    assert outcome.reason == "horizon"
    assert checkpoints.load(tmp_path / "run" / "latest.pt").step == 12
    monkeypatch.setattr(checkpointer, "LAST_TRIES_SECONDS", 0.0)
    with _restored() as refuse:
        after = at({12: lambda: refuse(True)})
        with pytest.raises(ResourceError):
            runs.train(settings, tmp_path / "never", show=watching(after, seen), record=record)


@needs_limits
def test_a_best_model_that_could_not_be_written_is_not_claimed(text: Path, tmp_path: Path) -> None:
    settings = settings_for(text, "eval.every=4", "train.steps=9", "train.lr=0.01")
    seen: list[Event] = []
    with _restored() as refuse:
        after = at({7: lambda: refuse(True), 9: lambda: refuse(False)})
        runs.train(settings, tmp_path / "run", show=watching(after, seen), record=record)
    assert any("best.pt could not be written" in line for line in warnings(seen))
    best, last = (checkpoints.load(tmp_path / "run" / name) for name in ("best.pt", "latest.pt"))
    assert best.step == last.state.best_step == 9
    assert best.best_loss == last.best_loss


@pytest.mark.skipif(sys.platform == "win32", reason="an open file keeps its folder there")
def test_a_folder_that_is_deleted_is_created_again(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = settings_for(text, "checkpoint.every_steps=4", "eval.every=100")
    train(settings, tmp_path / "calm")
    seen: list[Event] = []
    after = at({6: lambda: shutil.rmtree(run)})
    outcome = runs.train(settings, run, show=watching(after, seen), record=record)
    assert outcome.reason == "horizon"
    assert any("was deleted; it is created again" in line for line in warnings(seen))
    assert same(run / "latest.pt", tmp_path / "calm" / "latest.pt")
    assert (run / "settings.yaml").is_file()
    assert '"run_finished"' in (run / "metrics.jsonl").read_text()
