"""Runs and texts whose names are not UTF-8, as every command takes them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from command_line import cpulm
from small_runs import settings_for, train

from cpulm.distributed.begun_run import LAUNCH, begun_run, keep_begun
from cpulm.overnight.autostart import entry_name
from cpulm.overnight.log import Log
from cpulm.run_dir import RunDir
from cpulm.runs.label import Label, read_label

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")

NAME = os.fsdecode(b"run\xe9")
TEXT = os.fsdecode(b"caf\xe9.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text and a run of four steps on it."""
    made = tmp_path_factory.mktemp("names")
    (made / TEXT).write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    train(settings_for(made / TEXT, "train.steps=4", "log.report=false"), made / NAME)
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs", "name", NAME, TEXT],
        ["runs", "note", NAME, TEXT],
        ["runs", "."],
        ["summary", NAME],
        ["watch", NAME, "--headless"],
        ["analyze", NAME],
        ["generate", NAME, "--max-new-tokens=2"],
        ["export", NAME, "--to=hf", "--out=hf"],
        ["export", NAME, "--to=gguf", "--out=model.gguf"],
        ["export", NAME, "--to=page", "--out=page.html"],
        ["sweep", TEXT, "--set=train.lr=1e-3,2e-3", "--tokenizer=byte", "--steps=2", "--dry-run"],
        ["train", TEXT, f"--teacher={NAME}", "--print-config"],
    ],
    ids=lambda arguments: " ".join(word for word in arguments if word.isascii()),
)
def test_every_command_takes_them(folder: Path, arguments: list[str]) -> None:
    done = cpulm(folder, *arguments)
    assert done.returncode == 0, done.stderr


def test_a_label_keeps_its_bytes(folder: Path) -> None:
    cpulm(folder, "runs", "name", NAME, TEXT)
    assert read_label(RunDir(folder / NAME)).name == Label(name=TEXT).name


def test_tensorboard_which_cannot_write_there_refuses(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    small = ["--tokenizer=byte", "--steps=1", "--n-embd=16", "--n-head=2", "--block-size=16"]
    done = cpulm(folder, "train", TEXT, *small, "--tensorboard", f"--out=other-{NAME}")
    assert done.returncode == 2
    assert "TensorBoard cannot write into" in done.stderr


def test_the_log_of_a_night_takes_every_text(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.write_line(f"cpulm resume {NAME}")
    assert log.path.read_text(encoding="utf-8").endswith("cpulm resume run\\udce9\n")


def test_a_launcher_finds_its_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCH, str(folder / "launch"))
    keep_begun(folder / NAME)
    assert begun_run() == folder / NAME


def test_an_entry_for_the_start_has_a_name_in_ascii(folder: Path) -> None:
    assert entry_name(RunDir(folder / NAME)).startswith("cpulm-run-")
