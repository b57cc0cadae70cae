"""A run that continues from an older checkpoint, or was killed in its last moment, loses nothing it had."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import of, record, resume, same, settings_for, train

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import SettingsError
from cpulm.events import Event, Notice, RunFinished, RunStarted, StepDone, Validated, from_json
from cpulm.run_dir import RunDir
from cpulm.training import run as runs


class Killed(BaseException):
    """As ``kill -9``: nothing is saved or said after it."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    return path


def dying(when: Callable[[Event], bool]) -> Callable[[Event], None]:
    def show(event: Event) -> None:
        if when(event):
            raise Killed

    return show


def recorded_steps(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [event.step for event in of(StepDone, map(from_json, lines))]


def test_a_better_best_model_stays_and_its_loss_is_the_one_to_beat(text: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    train(settings_for(text, "checkpoint.every_steps=4", "checkpoint.keep=3", "train.lr=0.01"), run.path)
    # As if the run had come to a better model than it will from the older checkpoint
    best = checkpoints.load(run.best)
    best.state.best_loss = 0.25
    checkpoints.save(best, run.best)
    before = run.best.read_bytes()
    events, _ = resume(run.numbered(4))
    later = "the record ends at step 4; step-00000008.pt, step-00000012.pt of later"
    assert any(later in notice.message for notice in of(Notice, events))
    assert of(Validated, events)
    assert not any(event.best for event in of(Validated, events))
    assert run.best.read_bytes() == before
    assert any("best.pt of step 12 (loss 0.2500) stays" in notice.message for notice in of(Notice, events))
    assert checkpoints.load(run.latest).best_loss == 0.25


@pytest.mark.parametrize("damage", [False, True])
def test_killed_before_its_first_save_it_misses_no_step_in_the_record(
    text: Path, tmp_path: Path, damage: bool
) -> None:
    run = RunDir(tmp_path / "run")
    train(settings_for(text, "checkpoint.every_steps=4", "eval.every=100"), run.path)
    shutil.copytree(run.path, tmp_path / "whole")
    with pytest.raises(Killed):
        runs.resume(
            run.numbered(8),
            {},
            {},
            show=dying(lambda event: isinstance(event, StepDone) and event.step == 10),
            record=record,
        )
    assert checkpoints.load(run.latest).step == 8
    if damage:
        run.latest.write_bytes(run.latest.read_bytes()[:-1])
    resume(run.path)
    assert recorded_steps(run.path) == list(range(1, 13))
    assert same(run.latest, tmp_path / "whole" / "latest.pt")


@pytest.mark.parametrize(
    ("more", "reason", "step"),
    [
        ((), "horizon", 12),
        (("train.target_loss=9",), "target_loss", 5),
        (("train.patience=1",), "patience", 10),
    ],
)
def test_killed_before_its_last_word_a_run_is_finished_by_resume(
    text: Path, tmp_path: Path, more: tuple[str, ...], reason: str, step: int
) -> None:
    settings = settings_for(text, "train.lr=1e-20", "train.muon_lr=1e-20", *more)
    whole, _ = train(settings, tmp_path / "whole")
    assert of(RunFinished, whole)[0].reason == reason
    run = RunDir(tmp_path / "whole")
    lines = run.metrics.read_text().splitlines(keepends=True)
    assert '"run_finished"' in lines[-1]
    run.metrics.write_text("".join(lines[:-1]))
    events, outcome = resume(run.path)
    assert outcome.reason == reason
    assert [event.step for event in of(RunStarted, events)] == [of(RunFinished, whole)[0].step] == [step]
    assert not of(StepDone, events)
    assert of(RunFinished, map(from_json, run.metrics.read_text().splitlines()))[0].reason == reason
    if reason == "horizon":
        with pytest.raises(SettingsError, match="is already finished"):
            resume(run.path)


@pytest.mark.parametrize("file", ["train.bin", "meta.json", "tokenizer.json"])
@pytest.mark.usefixtures("fresh_cache")
def test_a_damaged_token_folder_in_the_cache_is_made_again(text: Path, tmp_path: Path, file: str) -> None:
    run = RunDir(tmp_path / "run")
    train(settings_for(text), run.path, stop_at=5)
    folder = Path(checkpoints.load(run.latest).data["path"])
    damaged = bytearray((folder / file).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / file).write_bytes(damaged)
    _, outcome = resume(run.path)
    assert outcome.reason == "horizon"
    assert not folder.exists()
    TokenFolder.open(Path(checkpoints.load(run.latest).data["path"])).verify()
