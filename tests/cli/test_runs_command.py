"""``cpulm runs``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_events import run_started

from cpulm.cli.completion import run_or_folder
from cpulm.events import Validated, to_json
from cpulm.run_dir import RunDir
from cpulm.runs.lock import locked
from cpulm.ui.runs import RunRow, runs_table

LOADED = """
import sys
sys.argv = ["cpulm", *sys.argv[1:]]
from cpulm.cli.main import main
try:
    main()
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""


def cpulm(
    folder: Path, *arguments: str, program: str = "from cpulm.cli.main import main; main()"
) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def a_run(path: Path, seconds_ago: float, step: int = 900) -> RunDir:
    """A run that validated once, some time ago."""
    path.mkdir(parents=True)
    at = time.time() - seconds_ago
    began = run_started(time=at, run=str(path), name=path.name, steps=2000)
    best = Validated(
        time=at,
        step=step,
        loss=2.5,
        perplexity=12.0,
        bits_per_byte=1.25,
        tokens=1000,
        seconds=1.0,
        whole=True,
        best=True,
    )
    run = RunDir(path)
    run.metrics.write_text(f"{to_json(began)}\n{to_json(best)}\n", encoding="utf-8")
    return run


def test_a_table_with_the_newest_first(tmp_path: Path) -> None:
    a_run(tmp_path / "runs" / "old", seconds_ago=7300)
    new = a_run(tmp_path / "runs" / "new", seconds_ago=65)
    with locked(new):
        code, out, err = cpulm(tmp_path, "runs")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["run", "state", "step", "best", "loss", "bits/byte", "seen", "disk", "preset"]
    path = str(Path("runs", "new"))
    size = lines[2][8:10]
    assert lines[2] == [path, "running", "0/2,000", "-", "2.5000", "1.2500", "1m", "ago", *size, "tiny"]
    assert lines[3][:2] == [str(Path("runs", "old")), "crashed"]
    assert "2h ago" in out


def test_json_has_every_field(tmp_path: Path) -> None:
    run = a_run(tmp_path / "one", seconds_ago=100)
    with locked(run):
        code, out, _ = cpulm(tmp_path, "runs", "one", "--json")
    [record] = json.loads(out)
    assert code == 0
    assert (record["run"], record["state"], record["pid"]) == ("one", "running", os.getpid())
    assert (record["best_loss"], record["steps"], record["preset"]) == (2.5, 2000, "tiny")


def test_no_runs_is_no_error_and_says_what_to_type(tmp_path: Path) -> None:
    code, out, err = cpulm(tmp_path, "runs")
    assert (code, out) == (0, "")
    assert err == "no runs in runs/ yet; start one: `cpulm train --preset tiny`\n"
    assert cpulm(tmp_path, "runs", "--json")[:2] == (0, "[]\n")
    (tmp_path / "there").mkdir()
    assert "no runs in there/ yet" in cpulm(tmp_path, "runs", "there")[2]


def test_folders_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path / "runs" / "one", seconds_ago=1).settings.write_text("")
    monkeypatch.chdir(tmp_path)
    assert run_or_folder("") == ["runs", "runs/one"]
    assert run_or_folder("runs/o") == ["runs/one"]
    assert run_or_folder("x") == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, out, err = cpulm(tmp_path, "runs", "nowhere")
    assert (code, out) == (3, "")
    assert err.startswith("error: nowhere is not a folder\n hint: ")


@pytest.mark.parametrize("command", ["runs", "watch", "stop"])
def test_nothing_heavy_is_loaded(tmp_path: Path, command: str) -> None:
    a_run(tmp_path / "one", seconds_ago=1).settings.write_text("")
    code, _, err = cpulm(tmp_path, command, "one", "--json", program=LOADED)
    loaded = set(err.split())
    assert code == 0
    assert "cpulm.runs.status" in loaded
    assert {"torch", "numpy", "tokenizers", "yaml", "cpulm.settings", "cpulm.ui.dashboard"} & loaded == set()


def test_the_table_fits_the_window_and_never_cuts_a_path() -> None:
    row = RunRow("runs/nanogpt-char-1", "finished", 12_000, 20_000, 0.6, 1.5, 0.75, 90.0, "nanogpt-char")
    from rich.console import Console

    for width, gone in [(120, set()), (100, {"preset"}), (80, {"preset", "bits/byte"})]:
        console = Console(width=width, color_system=None)
        with console.capture() as capture:
            console.print(runs_table([row], width))
        head, _, line, *rest = capture.get().splitlines()
        assert [part for part in rest if part.strip()] == []
        assert max(len(head), len(line)) <= width
        assert line.startswith("runs/nanogpt-char-1   finished   12,000/20,000   60%")
        assert {name for name in ("preset", "bits/byte") if name not in head} == gone


def test_ages_and_parts_are_rounded_down() -> None:
    from rich.console import Console

    def shown(seconds: float | None, progress: float) -> str:
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(runs_table([RunRow("r", "s", 1, 2, progress, None, None, seconds, None)], 120))
        return capture.get().splitlines()[2]

    assert "99%" in shown(4.9, 0.9999)
    assert "now" in shown(4.9, 0)
    assert "59s ago" in shown(59.9, 0)
    assert " 1m ago" in shown(119.9, 0)
    assert "23h ago" in shown(86_399, 0)
    assert " 3d ago" in shown(3.9 * 86_400, 0)


def test_runs_get_names_and_notes_and_are_deleted_on_request(tmp_path: Path) -> None:
    a_run(tmp_path / "one", seconds_ago=9).latest.write_bytes(b"weights")
    (tmp_path / "one" / "mine.txt").write_text("kept")
    assert cpulm(tmp_path, "runs", "name", "one", "the diary") == (0, "", "")
    assert cpulm(tmp_path, "runs", "note", "one", "dropout 0.2") == (0, "", "")
    code, out, err = cpulm(tmp_path, "runs", ".")
    assert (code, err) == (0, "")
    assert "the diary" in out
    code, out, err = cpulm(tmp_path, "runs", "rm", "one")
    assert code == 2
    assert "nothing was deleted: there is no terminal to ask in\n hint: add --yes" in err
    code, out, err = cpulm(tmp_path, "runs", "rm", "one", "./one", "--yes")
    assert (code, out) == (0, "")
    assert "one stays: cpulm did not write mine.txt" in err
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["mine.txt"]
