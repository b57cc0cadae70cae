"""``cpulm watch`` on runs that train, or whose files look like it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_events import run_finished, run_started, run_validated, step_done

from cpulm.events import EndReason, Event, RunFinished, RunStarted, StepDone, Validated, to_json
from cpulm.run_dir import RunDir
from cpulm.runlog.truncate import truncate_after
from cpulm.runs.lock import locked

Watcher = Callable[..., "subprocess.Popen[str]"]
BEGAN = time.time() - 100


def began(step: int = 0) -> RunStarted:
    return run_started(time=BEGAN + step, run="runs/one", name="one", step=step)


def step(number: int) -> StepDone:
    return step_done(number, time=BEGAN + number, loss=5 - number / 50)


def validated(number: int) -> Validated:
    return run_validated(number, 3.25, time=BEGAN + number, bits_per_byte=1.5)


def finished(number: int, reason: EndReason = "horizon") -> RunFinished:
    return run_finished(number, reason, time=BEGAN + number, best_loss=3.25, best_bits_per_byte=1.5)


def add(run: RunDir, *events: Event) -> None:
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write("".join(to_json(event) + "\n" for event in events))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "one")
    run.path.mkdir()
    run.settings.write_text("")
    return run


@pytest.fixture
def watcher(run: RunDir) -> Iterator[Watcher]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "cpulm", "watch", "one", *arguments],
            cwd=run.path.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> list[str]:
    """Lines of the process's JSON or, without stdout's, of its words, up to the one with ``words``."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"{words!r} never came:\n{''.join(lines)}")


def test_new_events_as_json_until_the_end(run: RunDir, watcher: Watcher) -> None:
    add(run, began(), *(step(number) for number in range(1, 30)), validated(20))
    with locked(run):
        process = watcher("--json")
        joined = read_until(process, '"event":"step"')
        # How it stands, and not all that was.
        assert [json.loads(line)["event"] for line in joined] == ["run_started", "validated", "step"]
        assert '"step":29' in joined[-1]
        add(run, step(30), step(31))
        assert len(read_until(process, '"step":31')) == 2
        add(run, finished(31))
        read_until(process, "run_finished")
        assert process.poll() is None  # the process that trains is still there
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_resumed_run_is_reported_again_and_no_event_twice(run: RunDir, watcher: Watcher) -> None:
    add(run, began(), step(1), step(2), step(3), finished(3, "stopped"))
    with locked(run):
        process = watcher("--json")
        read_until(process, "run_finished")
        truncate_after(run.metrics, 2)
        again = [json.loads(line) for line in read_until(process, '"event":"step"')]
        assert [(event["event"], event["step"]) for event in again] == [("run_started", 0), ("step", 2)]
        add(run, began(2), step(3))
        new = [json.loads(line) for line in read_until(process, '"event":"step"')]
        assert [(event["event"], event["step"]) for event in new] == [("run_started", 2), ("step", 3)]


def test_a_run_that_is_just_getting_ready_is_waited_for(run: RunDir, watcher: Watcher) -> None:
    with locked(run):
        process = watcher("--json")
        assert '"stage":"getting ready"' in read_until(process, "progress")[0]
        add(run, began())
        read_until(process, "run_started")


def test_a_run_whose_process_is_gone_is_said_to_have_crashed(run: RunDir, watcher: Watcher) -> None:
    add(run, began(), step(7))
    with locked(run):
        process = watcher("--headless")
        assert process.stderr is not None
        assert process.stderr.readline() == (
            "one: preset tiny, 3.00 K parameters (2.00 K without embeddings), 64 tokens a step, "
            "10.0 K training tokens\n"
        )
        assert process.stderr.readline().startswith("cpu Xeon")
        assert process.stderr.readline().startswith("step   7/100  loss  4.8600")
        assert process.poll() is None
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert err.startswith(
        "crashed: one: its process ended unexpectedly; the last event in its log is from step 7"
    )
    assert "cpulm resume one" in err


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to one process")
def test_leaving_does_not_touch_the_run(run: RunDir, watcher: Watcher) -> None:
    add(run, began(), step(7))
    with locked(run):
        process = watcher("--json")
        read_until(process, '"step":7')
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "one continues to train\n")
        assert not run.stop.exists()
        assert sorted(path.name for path in run.path.iterdir()) == ["lock", "metrics.jsonl", "settings.yaml"]


def test_a_finished_run_is_shown_at_once(run: RunDir, watcher: Watcher) -> None:
    add(run, began(), step(1), validated(1), step(2), finished(2))
    out, err = watcher().communicate(timeout=60)
    assert out == ""
    assert err.splitlines()[-4:] == [
        "step   2/100  loss  4.9600  lr 1.0e-03  norm  1.00   1.00 it/s      64 tok/s  eta 1m 38s",
        "finished after step 2: 2.0s",
        "128 tokens at 64 tok/s",
        "best validation loss 3.2500 at step 20, 1.5000 bits per byte, perplexity 25.79",
    ]
    out, err = watcher("--json").communicate(timeout=60)
    assert [json.loads(line)["event"] for line in out.splitlines()] == [
        "run_started",
        "validated",
        "step",
        "run_finished",
    ]
    assert err == ""


def test_a_run_is_played_again(run: RunDir, watcher: Watcher) -> None:
    add(run, began(), *(step(number) for number in range(1, 61)), finished(60))
    process = watcher("--json", "--speed", "30")
    read_until(process, '"step":1,')
    at = time.monotonic()
    lines = read_until(process, "run_finished")
    assert len(lines) == 60
    assert 1 < time.monotonic() - at < 6
    assert process.wait(10) == 0


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf"])
def test_no_speed(run: RunDir, watcher: Watcher, speed: str) -> None:
    process = watcher("--speed", speed)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "is not a speed" in err
    assert " hint: " in err


def test_a_log_that_cannot_be_read_is_not_one_of_a_run_that_has_not_begun(
    run: RunDir, watcher: Watcher
) -> None:
    run.metrics.mkdir()
    process = watcher()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "metrics.jsonl cannot be read: Is a directory" in said.replace("\n", " ")


def test_a_folder_without_a_run(run: RunDir, watcher: Watcher) -> None:
    _, err = watcher().communicate(timeout=60)
    assert err.startswith("new: one has not started, and no process trains it\n hint: ")
    run.settings.unlink()
    process = watcher()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "is not a cpulm run" in err


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_the_dashboard_says_that_it_only_watches(run: RunDir) -> None:
    pty = pytest.importorskip("pty")
    pyte = pytest.importorskip("pyte")
    fcntl, struct, termios = (pytest.importorskip(name) for name in ("fcntl", "struct", "termios"))
    add(run, began(), step(7))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    screen = pyte.Screen(100, 24)
    stream = pyte.ByteStream(screen)
    with locked(run):
        process = subprocess.Popen(
            [sys.executable, "-m", "cpulm", "watch", "one"],
            cwd=run.path.parent,
            stdin=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(theirs)
        until = time.monotonic() + 20
        while "watching one; Ctrl-C leaves, the run continues" not in "\n".join(screen.display):
            assert time.monotonic() < until, "\n".join(screen.display)
            stream.feed(os.read(ours, 65536))
        assert "7/100" in "\n".join(screen.display)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        left = b""
        while chunk := _read(ours):
            left += chunk
    os.close(ours)
    assert b"\x1b[?1049l" in left  # the terminal as it was
    assert left.rstrip().endswith(b"one continues to train")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the way Linux tells that the other side is closed
        return b""
