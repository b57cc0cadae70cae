"""``--overnight``: real runs, closed terminals, kills, stop requests, reboots."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import forks as forks

from cpulm.cli.overnight import as_flags, child_arguments
from cpulm.command import cpulm_command
from cpulm.system import process

pytestmark = pytest.mark.slow

QUICK = """
model: {n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {tokenizer: byte, vocab_size: null, source: rhyme.txt}
train: {micro_batch_size: 4, steps: 250, warmup_steps: 1}
eval: {every: 100}
checkpoint: {every: 1}
sample: {max_new_tokens: 5}
runtime: {threads: 1, compile: "off"}
log: {report: false}
"""
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with text and settings; whatever still works for it at the end is killed."""
    (tmp_path / "rhyme.txt").write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    (tmp_path / "quick.yaml").write_text(QUICK)
    yield tmp_path
    for path in tmp_path.glob("runs/*/overnight.json"):
        night = json.loads(path.read_text(encoding="utf-8"))
        if night["state"] in ("training", "waiting"):
            for pid in (night["pid"], night["child_pid"]):
                if pid:
                    os.kill(pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


def begin(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*cpulm_command(*arguments), "--no-nice", "--overnight"],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=240,
        check=False,
    )


def night_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "runs/run-1/overnight.json").read_text(encoding="utf-8"))
    return record


def wait_for(folder: Path, ready: Callable[[dict[str, Any]], object], seconds: float = 240) -> dict[str, Any]:
    """The night's record, once ``ready`` holds for it."""
    end = time.monotonic() + seconds
    while not ready(night_of(folder)):
        assert time.monotonic() < end, (folder / "runs/run-1/overnight.log").read_text(encoding="utf-8")
        time.sleep(0.1)
    return night_of(folder)


def wait_for_end(folder: Path) -> dict[str, Any]:
    """The night's record, once its supervisor has written everything and is gone."""
    return wait_for(folder, lambda night: not process.is_running(night["pid"], night["pid_started"]))


def test_a_run_that_is_killed_is_complete_in_the_morning(folder: Path) -> None:
    """Also beside files of the user's that Python would take for its modules, whenever they are saved."""
    save_modules(folder, "random", "select")
    arguments = "train --config quick.yaml --steps 1000 --set log.report=true"
    begun = begin(folder, *arguments.split())
    assert begun.returncode == 0, begun.stderr
    assert begun.stdout == f"{Path('runs/run-1')}\n"
    assert "cpulm stop" in begun.stderr
    night = night_of(folder)
    assert night["state"] == "training"
    if os.name != "nt":
        os.kill(night["child_pid"], signal.SIGSTOP)  # on a slow disk it would end before the kill
        assert os.getsid(night["pid"]) == night["pid"]  # no terminal's end reaches it
    save_modules(folder, *(sys.stdlib_module_names - {"__main__"}), "torch", "rich", "typer", "cpulm")
    os.kill(night["child_pid"], signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    night = wait_for_end(folder)
    assert (night["state"], len(night["attempts"])) == ("finished", 2)
    page = (folder / "runs/run-1/summary.md").read_text(encoding="utf-8")
    assert "step 1,000 of 1,000" in page
    assert "started again from step" in page
    if os.name != "nt":
        assert "killed by SIGKILL" in page
    assert (folder / "runs/run-1/best.pt").is_file()
    assert (folder / "runs/run-1/report.html").is_file()
    boot = cpulm_command("supervise", "--at-boot", "runs/run-1")
    assert subprocess.run(boot, cwd=folder, timeout=60, check=False).returncode == 0
    assert not (folder / "ran").exists()


def test_a_request_to_stop_is_for_good(folder: Path, forks: None) -> None:
    begin(folder, "train", "--config", "quick.yaml", "--steps", "100000")
    (folder / "runs/run-1/stop").write_text("")
    night = wait_for_end(folder)
    assert (night["state"], night["attempts"][-1]["code"], len(night["attempts"])) == ("stopped", 75, 1)
    assert "Stopped on purpose. Saved up to step" in (folder / "runs/run-1/summary.md").read_text("utf-8")
    boot = cpulm_command("supervise", "--at-boot", "runs/run-1")
    assert subprocess.run(boot, cwd=folder, timeout=60, check=False).returncode == 0
    assert len(night_of(folder)["attempts"]) == 1


@posix
def test_a_run_continues_after_the_computer_was_shut_down(folder: Path, forks: None) -> None:
    begin(folder, "train", "--config", "quick.yaml", "--steps", "1500")  # long enough to be in the middle
    os.kill(night_of(folder)["pid"], signal.SIGTERM)
    assert wait_for_end(folder)["state"] == "interrupted"
    boot = cpulm_command("supervise", "--at-boot", str(folder / "runs/run-1"))
    assert subprocess.run(boot, cwd="/", timeout=240, check=False).returncode == 0
    night = night_of(folder)
    assert (night["state"], len(night["attempts"])) == ("finished", 2)
    assert night["attempts"][0]["step"] == night["attempts"][1]["from_step"]


def test_resume_continues_overnight_with_a_new_horizon(folder: Path, forks: None) -> None:
    train = cpulm_command("train", "--config", "quick.yaml", "--steps", "3", "--headless")
    subprocess.run(train, cwd=folder, capture_output=True, timeout=60, check=True)
    begun = begin(folder, "resume", "runs/run-1", "--steps", "30")
    assert begun.returncode == 0, begun.stderr
    assert wait_for_end(folder)["state"] == "finished"
    again = begin(folder, "resume", "runs/run-1")
    assert again.returncode == 2
    assert "is already finished" in again.stderr
    assert night_of(folder)["state"] == "finished"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--config", "quick.yaml", "--set", "train.lr=quick"], 2, "train.lr"),
        (["--config", "quick.yaml", "--data", "missing.txt"], 3, "missing.txt"),
        (["--config", "quick.yaml", "--data", "-"], 2, "read only once"),
    ],
)
def test_an_error_is_reported_at_once_and_leaves_nothing(
    folder: Path, forks: None, arguments: list[str], code: int, said: str
) -> None:
    begun = begin(folder, "train", *arguments)
    assert (begun.returncode, begun.stdout) == (code, "")
    assert said in begun.stderr
    assert list(folder.glob("runs/*")) == []


def test_a_run_that_is_trained_overnight_is_not_taken_on_twice(folder: Path, forks: None) -> None:
    begin(folder, "train", "--config", "quick.yaml", "--steps", "100000")
    again = begin(folder, "resume", "runs/run-1")
    assert again.returncode == 2
    assert "is already trained overnight" in again.stderr
    assert night_of(folder)["state"] == "training"


@posix
def test_ctrl_c_before_the_run_has_begun_leaves_nothing(folder: Path) -> None:
    command = cpulm_command("train", "--config", "quick.yaml", "--overnight")
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as begun:
        assert begun.stderr is not None
        assert "overnight: cpulm train" in begun.stderr.readline()
        begun.send_signal(signal.SIGINT)
        assert begun.wait(timeout=60) == 130
    assert list(folder.glob("runs/*/overnight.json")) == []


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        (["--steps", "9", "--overnight"], ["--steps", "9"]),
        (["--out", "x", "--overnight", "--data=a b"], ["--data=a b"]),
        (["--out=x", "--headless", "--json", "--resume"], []),
    ],
)
def test_what_the_first_run_of_the_night_is_given(typed: list[str], given: list[str]) -> None:
    assert child_arguments(typed) == given


def test_what_a_resumed_run_is_given() -> None:
    """Every option that ``cpulm resume`` has for a setting is reached by the setting's name."""
    settings = {
        **dict.fromkeys(("steps", "epochs", "tokens")),
        "max_time": "8h",
        "until": "2026-11-22T07:00:00+01:00",
        "checkpoint.every": "5min",
        "runtime.nice": True,
        "runtime.allow_sleep": None,
        "runtime.pause_on_battery": False,
    }
    flags = as_flags(settings)
    assert flags == [
        "--max-time=8h",
        "--until=2026-11-22T07:00:00+01:00",
        "--checkpoint-every=5min",
        "--nice",
        "--no-pause-on-battery",
    ]
    wide = {**os.environ, "COLUMNS": "200"}
    page = subprocess.run(
        cpulm_command("resume", "--help"), capture_output=True, text=True, env=wide, check=True
    )
    shown = page.stdout.replace("--[no-]", "--")
    assert [flag for flag in flags if flag.replace("--no-", "--").partition("=")[0] not in shown] == []


SET_BACK = """
import os, sys, time
if {"supervise", "--headless"} & set(sys.orig_argv):
    real = time.time
    time.time = lambda: real() - 86400
"""


def test_a_night_whose_clock_is_a_day_behind_the_command_that_began_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SET_BACK)
    places = [str(folder / "site"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
    begun = begin(folder, "train", "--config", "quick.yaml", "--steps", "20")
    assert begun.returncode == 0, begun.stderr
    night = wait_for_end(folder)
    assert night["state"] == "finished"
    assert night["since"] < time.time() - 80000
    assert (folder / "runs/run-1/summary.md").is_file()


def save_modules(folder: Path, *names: str) -> None:
    """Files of the user's that note it if they are run."""
    for name in names:
        program = f"open({str(folder / 'ran')!r}, 'a').write({name!r}); raise SystemExit('{name} ran')\n"
        (folder / f"{name}.py").write_text(program)
