"""A path that the system refuses gives a message, whatever command it is given to, and never a traceback.

A name of 300 letters stands for all of them: the system refuses it to root, too.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from cpulm import errors
from cpulm.cli.main import main
from cpulm.data.token_cache import token_caches
from cpulm.errors import DataError, ResourceError, of_the_system

LONG = "x" * 300
SWEEP = "--dry-run --steps 2 --set train.lr=1e-3,2e-3"


@pytest.mark.parametrize(
    "line",
    [
        f"tokenize {LONG} --out new",
        f"tokenize {LONG}/* --out new",
        f"tokenize t.txt --out {LONG}",
        f"tokenize t.txt --out {LONG}/new",
        f"tokenize t.txt --tokenizer {LONG} --out new",
        f"tokenize t.txt --val-data {LONG} --out new",
        f"train {LONG} --dry-run --steps 2",
        f"train t.txt --steps 2 --out {LONG}",
        f"train t.txt --resume --out {LONG} --dry-run",
        f"train --config {LONG} --dry-run",
        f"generate {LONG}",
        f"generate {LONG}/best.pt",
        f"generate t.txt --prompt-file {LONG}",
        f"evaluate {LONG}",
        f"evaluate {LONG}/run --data t.txt",
        f"evaluate t.pt --choices {LONG}",
        f"analyze {LONG}",
        f"analyze {LONG}.pt --model",
        f"resume {LONG}",
        f"resume {LONG} --overnight",
        f"watch {LONG}",
        f"stop {LONG}",
        f"runs {LONG}",
        f"at-boot {LONG}",
        f"sweep {LONG} {SWEEP}",
        f"sweep --config {LONG} {SWEEP}",
        f"sweep --resume {LONG}",
        f"benchmark --config {LONG} --quick",
        f"benchmark --data {LONG} --quick",
        f"benchmark --max-time 1m --out {LONG}",
    ],
)
def test_every_command(
    line: str, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("t.txt").write_text("some text\n" * 50)
    monkeypatch.setattr(sys, "argv", ["cpulm", *line.split(), *(["--headless"] if "train" in line else [])])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (2, 3, 5)
    told = capsys.readouterr().err
    assert "error: " in told
    assert line.startswith("sweep") or "sweep.yaml" not in told, "a file that nobody named"
    assert [path.name for path in Path().iterdir()] == ["t.txt"]


def test_a_path_that_may_not_be_read_is_named(
    in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _mode: str(path) != "closed")  # root may read all
    monkeypatch.setattr(sys, "argv", ["cpulm", "runs", "closed"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "closed is not readable" in capsys.readouterr().err


def refusal(number: int, path: Path | None) -> OSError:
    return OSError(number, os.strerror(number), *([] if path is None else [str(path)]))


def test_what_the_system_refuses_is_named_and_has_the_code_of_its_kind(tmp_path: Path) -> None:
    there, new = tmp_path / "there", tmp_path / "new"
    there.write_text("text")
    for number, path, kind in (
        (errno.ENAMETOOLONG, there, DataError),
        (errno.EACCES, tmp_path / "closed" / "file", DataError),
        (errno.EACCES, there, ResourceError),
        (errno.EACCES, new, ResourceError),
        (errno.ENOSPC, new, ResourceError),
        (errno.EROFS, new, ResourceError),
    ):
        found = of_the_system(refusal(number, path))
        assert type(found) is kind, number
        assert found is not None
        assert found.message == f"cannot use {path}: {os.strerror(number)}"
        assert found.hint


def test_memory_that_the_system_refused_is_no_bug() -> None:
    for error in (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")):
        found = of_the_system(error)
        assert isinstance(found, ResourceError)
        assert found.message.startswith("out of memory")


def test_other_errors_stay_bugs() -> None:
    own = refusal(errno.ENOENT, Path(errors.__file__).with_name("gone.py"))
    for error in (ValueError("x"), RuntimeError("x"), refusal(errno.EBADF, None), OSError("x"), own):
        assert of_the_system(error) is None


def test_without_a_home_the_cache_lies_beside_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CPULM_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert token_caches()[0].is_absolute()
