"""``cpulm stop`` on runs that train in other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import command_line
import pytest
from forked import Forked
from small_events import run_started

from cpulm.events import StepDone, line_start, to_json
from cpulm.run_dir import RunDir
from cpulm.runs import supervisor_state
from cpulm.runs.lock import holder
from cpulm.runs.supervisor_state import new_state

TRAIN = """
import sys, threading, time
from pathlib import Path
from cpulm.runs.lock import locked
from cpulm.runs.stop_file import watch_for_stop
from cpulm.events import RunFinished, to_json
from cpulm.run_dir import RunDir
run, late = RunDir(Path(sys.argv[1])), float(sys.argv[2])
asked = threading.Event()
with locked(run):
    print("held", flush=True)
    time.sleep(late)
    run.stop.unlink(missing_ok=True)
    with watch_for_stop(run, lambda why: asked.set()):
        asked.wait(30)
    time.sleep(0.5)
    end = RunFinished(step=1234, tokens=1, reason="stopped", elapsed_seconds=1.0, estimated_seconds=None,
        best_loss=None, best_step=None, best_bits_per_byte=None, tokens_per_second=1.0, checkpoint=None)
    run.metrics.write_text(to_json(end) + "\\n")
"""
"""A process that holds a run and can be asked to stop; ``late`` seconds it clears old requests."""

QUICK = """
model: {n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {tokenizer: byte, vocab_size: null, source: rhyme.txt}
train: {micro_batch_size: 4, steps: 1000000, warmup_steps: 1}
eval: {every: 100}
sample: {max_new_tokens: 5}
runtime: {threads: 1, compile: "off"}
log: {report: false}
"""

Trainer = Callable[..., "subprocess.Popen[str]"]


def cpulm(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = command_line.cpulm(folder, *arguments)
    return done.returncode, done.stdout, done.stderr


def a_run(path: Path) -> RunDir:
    path.mkdir(parents=True)
    run = RunDir(path)
    run.settings.write_text("")
    return run


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    started: list[subprocess.Popen[str]] = []

    def start(run: RunDir, late: float = 0.0) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(run.path), str(late)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_it_waits_until_the_run_has_saved_and_says_how_it_stands(tmp_path: Path, trainer: Trainer) -> None:
    run = a_run(tmp_path / "runs" / "one")
    process = trainer(run)
    code, out, err = cpulm(tmp_path, "stop", "runs/one")
    assert code == 0
    assert process.wait(5) == 0  # it had let go before the answer came
    name = Path("runs", "one")
    assert err == (
        f"{name}: requested to stop; it finishes its step and saves\n"
        f" hint: continue it with `cpulm resume {name}`\n"
    )
    assert out == f"{name}: it was stopped, with everything saved (step 1,234)\n"


@pytest.mark.skipif(os.name == "nt", reason="SIGSTOP")
def test_a_suspended_run_is_continued_so_that_it_can_save(tmp_path: Path, trainer: Trainer) -> None:
    run = a_run(tmp_path / "one")
    process = trainer(run)
    process.send_signal(signal.SIGSTOP)
    code, out, err = cpulm(tmp_path, "stop", "one")
    assert (code, out) == (0, "one: it was stopped, with everything saved (step 1,234)\n")
    assert f"process {process.pid} was suspended (Ctrl-Z or SIGSTOP): continued" in err


def test_without_waiting(tmp_path: Path, trainer: Trainer) -> None:
    run = a_run(tmp_path / "one")
    process = trainer(run)
    code, out, err = cpulm(tmp_path, "stop", "one", "--no-wait")
    assert (code, out, err) == (0, "one: requested to stop\n", "")
    assert process.wait(5) == 0


def test_a_request_that_a_starting_run_took_for_an_old_one_is_said_again(
    tmp_path: Path, trainer: Trainer
) -> None:
    run = a_run(tmp_path / "one")
    trainer(run, late=2.0)
    code, out, _ = cpulm(tmp_path, "stop", "one")
    assert code == 0
    assert out == "one: it was stopped, with everything saved (step 1,234)\n"


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to one process")
def test_ctrl_c_while_waiting_leaves_the_request_in_place(tmp_path: Path, trainer: Trainer) -> None:
    run = a_run(tmp_path / "one")
    trainer(run, late=20.0)
    process = subprocess.Popen(
        [sys.executable, "-m", "cpulm", "stop", "one"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "one: requested to stop; it finishes its step and saves\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("stopped: no longer waiting; one is still requested to stop\n hint: ")
    assert run.stop.is_file()


def test_all_that_are_at_work(tmp_path: Path, trainer: Trainer) -> None:
    names = ["one", "two", "idle"]
    runs = [a_run(tmp_path / "runs" / name) for name in names]
    processes = [trainer(run) for run in runs[:2]]
    code, out, _ = cpulm(tmp_path, "stop", "--all", "--json")
    assert code == 0
    assert [(one["name"], one["state"]) for one in json.loads(out)] == [
        ("one", "stopped"),
        ("two", "stopped"),
    ]
    assert [process.wait(5) for process in processes] == [0, 0]
    assert not runs[2].stop.exists()
    assert cpulm(tmp_path, "stop", "--all") == (0, "nothing is being trained in runs/\n", "")


def test_a_run_without_a_process_is_shown_with_its_last_state(tmp_path: Path, trainer: Trainer) -> None:
    run = a_run(tmp_path / "one")
    assert cpulm(tmp_path, "stop", "one")[:2] == (0, "one: not running: it has not trained a step\n")
    killed = trainer(run)
    run.metrics.write_text(to_json(run_started(steps=50)) + "\n")
    killed.kill()
    killed.wait()
    answer = cpulm(tmp_path, "stop", "one")
    hint = " hint: continue it with `cpulm resume one`\n"
    assert answer == (
        0,
        "one: not running: its process ended unexpectedly (step 0 of 50)\n",
        hint,
    )
    assert not run.stop.exists()


def test_a_supervisor_between_two_attempts_is_stopped_too(tmp_path: Path) -> None:
    run = a_run(tmp_path / "one")
    night = new_state(run, [])
    night.state = "waiting"
    night.set_supervisor()  # this process stands for the supervisor
    supervisor_state.write(run, night)
    code, out, _ = cpulm(tmp_path, "stop", "one", "--no-wait")
    assert (code, out) == (0, "one: requested to stop\n")
    assert run.stop.is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "no run given"),
        (["one", "--all"], 2, "give either runs or --all"),
        (["nowhere"], 3, "nowhere does not exist"),
        (["."], 3, "is not a cpulm run"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    a_run(tmp_path / "one")
    answer = cpulm(tmp_path, "stop", *arguments)
    assert answer[0] == code
    assert words in answer[2]
    assert " hint: " in answer[2]


def test_a_real_run_stops_with_everything_saved(tmp_path: Path) -> None:
    (tmp_path / "rhyme.txt").write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    (tmp_path / "quick.yaml").write_text(QUICK)
    run = RunDir(tmp_path / "runs" / "run-1")
    process = Forked(tmp_path, "train", "--config", "quick.yaml")
    until = time.monotonic() + 60
    while not (run.metrics.is_file() and line_start(StepDone) in run.metrics.read_bytes()):
        assert time.monotonic() < until
        time.sleep(0.1)
    found = holder(run)
    assert found is not None
    assert found.pid == process.pid
    code, out, _ = cpulm(tmp_path, "stop", "runs/run-1")
    assert code == 0
    assert "stopped, with everything saved (step" in out
    assert process.wait() == 75
    assert run.latest.is_file()
