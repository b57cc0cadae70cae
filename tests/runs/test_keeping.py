"""What of a run is deleted, and what never is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from full_disk import full_disk, has_limits
from small_runs import resume, settings_for, train

from cpulm.checkpoints.load_model import load_model
from cpulm.checkpoints.strip import keep_weights_alone
from cpulm.errors import DataError, ResourceError, SettingsError
from cpulm.run_dir import RunDir, disk_bytes
from cpulm.runs import lock
from cpulm.runs.keeping import delete, prunable
from cpulm.runs.label import LONGEST_NAME, Label, read_label, write_label
from cpulm.runs.lock import locked


def a_run(path: Path, *files: str) -> RunDir:
    path.mkdir()
    for name in ("settings.yaml", "latest.pt", *files):
        (path / name).write_bytes(b"x" * 10)
    return RunDir(path)


def test_a_run_at_work_is_never_deleted(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    with locked(run), pytest.raises(SettingsError, match="is being trained"):
        delete(run)
    assert run.latest.is_file()
    assert delete(run) == []
    assert not run.path.exists()


@has_limits
def test_a_full_disk_is_a_reason_to_delete_and_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "run")
    with full_disk():
        with pytest.raises(ResourceError, match="cannot write"), locked(run):
            pass
        assert delete(run) == []
    run = a_run(tmp_path / "run")

    def no_room(path: Path, flags: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(lock, "open_own", no_room)
    assert delete(run) == []


def test_what_others_wrote_stays(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "best.pt", "step-00000010.pt", "notes.md", "step-10.pt", "best.pt.backup")
    other = tmp_path / "elsewhere.pt"
    other.write_bytes(b"mine")
    run.report.symlink_to(other)
    assert delete(run) == ["best.pt.backup", "notes.md", "step-10.pt"]
    assert other.read_bytes() == b"mine"


def test_numbered_checkpoints_are_kept_if_there_is_no_other(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "step-00000010.pt", "teacher-0123abcd.pt")
    numbered, teacher = run.numbered(10), run.path / "teacher-0123abcd.pt"
    assert prunable(run, complete=False) == [numbered]
    assert prunable(run, complete=True) == [numbered, teacher]
    run.latest.unlink()
    assert prunable(run, complete=True) == []


def test_a_finished_run_keeps_its_best_weights_alone(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    more = ("train.average_fraction=0.5", "checkpoint.keep=3", "checkpoint.every_steps=4")
    _, outcome = train(settings_for(text, *more), tmp_path / "run")
    run = outcome.run
    assert [path.name for path in run.path.iterdir() if not run.wrote(path.name)] == []
    model = load_model(run.path, warn=pytest.fail)[0]
    weights, before = model.state_dict(), disk_bytes(run.path)
    for path in prunable(run, complete=True):
        path.unlink()
    keep_weights_alone(run)
    assert disk_bytes(run.path) < before / 2
    again = load_model(run.path, warn=pytest.fail)[0].state_dict()
    assert all(weights[name].equal(again[name]) for name in weights)
    with pytest.raises(DataError, match="the weights alone"):
        resume(run.path, steps=20)


def test_labels_are_short_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    write_label(run, Label("the diary", "two\nlines"))
    assert read_label(run) == Label("the diary", "two\nlines")
    for name in ("x" * (LONGEST_NAME + 1), "two\nlines"):
        with pytest.raises(SettingsError, match="name is too long"):
            write_label(run, Label(name))
    run.label.write_bytes(b'{"name": 3}')
    assert read_label(run) == Label()
