"""A run's folder: how it is created, its contents, how it is found."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cpulm import run_dir
from cpulm.errors import DataError, SettingsError
from cpulm.run_dir import RunDir


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_runs_are_numbered_from_one(in_empty_folder: Path) -> None:
    created = [run_dir.create(None, "tiny").path.as_posix() for _ in range(3)]
    assert created == ["runs/tiny-1", "runs/tiny-2", "runs/tiny-3"]
    assert run_dir.create(None, "small").path.as_posix() == "runs/small-1"


@pytest.mark.parametrize(
    ("stem", "name"), [("", "run-1"), ("a/b\\c: d", "a-b-c-d-1"), ("..", "run-1"), ("größe", "größe-1")]
)
def test_any_stem_makes_one_harmless_folder(in_empty_folder: Path, stem: str, name: str) -> None:
    assert run_dir.create(None, stem).path == Path("runs", name)


def test_runs_that_start_at_once_get_folders_of_their_own(in_empty_folder: Path) -> None:
    created: list[Path] = []
    threads = [
        threading.Thread(target=lambda: created.append(run_dir.create(None, "tiny").path)) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(created)) == 16


def test_a_named_folder_is_made_with_its_parents_or_taken_when_empty(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er"
    assert run_dir.create(out, "tiny").path == out
    assert out.is_dir()
    assert run_dir.create(out, "tiny").path == out


@pytest.mark.parametrize("inside", ["best.pt", "notes.txt", "empty-folder/"])
def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path, inside: str) -> None:
    if inside.endswith("/"):
        (tmp_path / "out" / inside).mkdir(parents=True)
    else:
        touch(tmp_path / "out" / inside)
    with pytest.raises(SettingsError, match="exists and is not empty") as raised:
        run_dir.create(tmp_path / "out", "tiny")
    assert "--resume" in raised.value.hint
    assert [path.name for path in (tmp_path / "out").iterdir()] == [inside.rstrip("/")]


def test_a_file_in_the_way_is_named(in_empty_folder: Path) -> None:
    touch(Path("out"))
    with pytest.raises(SettingsError, match="out is a file"):
        run_dir.create(Path("out"), "tiny")
    with pytest.raises(SettingsError, match=r"out.run"):
        run_dir.create(Path("out/run"), "tiny")
    touch(Path("runs"))
    with pytest.raises(SettingsError, match="cannot create the run's folder runs") as raised:
        run_dir.create(None, "tiny")
    assert "--out" in raised.value.hint


def test_checkpoints_are_the_newest_first(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.checkpoints() == []
    touch(run.best, run.numbered(200), run.numbered(1_000_000_000), run.numbered(30), run.latest)
    touch(tmp_path / "step-7.pt", tmp_path / "step-0000000000007.pt", tmp_path / "step-00000007.pt.tmp")
    (tmp_path / "step-00000008.pt").mkdir()
    assert run.numbered_steps() == [30, 200, 1_000_000_000]
    for when, path in enumerate([run.latest, run.numbered(30), run.numbered(200), run.best]):
        os.utime(path, ns=(when, when))
    assert [path.name for path in run.checkpoints()] == [
        "latest.pt",
        "step-1000000000.pt",
        "best.pt",
        "step-00000200.pt",
        "step-00000030.pt",
    ]


def test_a_run_is_found_by_its_folder_or_by_a_file_in_it(in_empty_folder: Path) -> None:
    run = run_dir.create(None, "tiny")
    touch(run.latest, run.settings)
    assert run_dir.find(run.path) == run
    assert run_dir.find(run.latest) == run
    assert run_dir.find(run.settings) == run
    assert run.name == "tiny-1"


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_one(in_empty_folder: Path) -> None:
    run = run_dir.create(None, "tiny")
    touch(run.settings)
    assert run_dir.find(run.path) == run


def test_the_current_folder_has_a_name_too(in_empty_folder: Path) -> None:
    touch(Path("latest.pt"))
    assert run_dir.find(Path("latest.pt")).name == in_empty_folder.name
    assert run_dir.find(Path()).name == in_empty_folder.name


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        run_dir.find(tmp_path / "nowhere")
    touch(tmp_path / "some.txt")
    with pytest.raises(DataError, match="is not a cpulm run"):
        run_dir.find(tmp_path)
    with pytest.raises(DataError, match="is not a cpulm run"):
        run_dir.find(tmp_path / "some.txt")
