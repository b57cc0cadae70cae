"""The folder of a run that was killed before its first checkpoint can be used again."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpulm import run_dir
from cpulm.errors import SettingsError


def killed_early(out: Path) -> Path:
    out.mkdir()
    for name in ("lock", "settings.yaml", ".latest.pt.7-7.tmp"):
        (out / name).touch()
    (out / "metrics.jsonl").write_text('{"event":"notice","time":1,"level":"info","message":"hello"}\n')
    return out


def test_nothing_was_trained_there(tmp_path: Path) -> None:
    out = killed_early(tmp_path / "run")
    assert run_dir.create(out, "tiny").path == out


@pytest.mark.parametrize(
    ("name", "content"),
    [("metrics.jsonl", '{"event":"step","time":1,"step":1}\n'), ("best.pt", ""), ("notes.txt", "mine")],
)
def test_there_is_something_to_lose(tmp_path: Path, name: str, content: str) -> None:
    out = killed_early(tmp_path / "run")
    (out / name).write_text(content)
    with pytest.raises(SettingsError, match="not empty"):
        run_dir.create(out, "tiny")


def test_settings_without_a_run_are_somebodys_own(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").touch()
    with pytest.raises(SettingsError, match="not empty"):
        run_dir.create(tmp_path, "tiny")
