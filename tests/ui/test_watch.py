"""The three outputs of the same events: their streams, and the terminal afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cpulm.events import Event, Progress, StepDone, from_json
from cpulm.ui.watch import choose_mode, watch

TESTS = Path(__file__).parents[1]
PLAY = """
import sys, time
sys.path[:0] = sys.argv.pop(1), sys.argv.pop(1)
from one_run import run_events
from cpulm.ui.watch import watch
with watch(sys.argv[1]) as listener:
    for number, event in enumerate(run_events()):
        listener(event)
        if number in (5, 100):
            time.sleep(0.7)
    if sys.argv[2:] == ["warn"]:
        print("a library says something", file=sys.stderr)
    if sys.argv[2:] == ["break"]:
        raise SystemExit("broken off")
"""


@pytest.mark.parametrize("mode", ["live", "plain", "json"])
def test_the_same_run_in_every_mode(
    events: list[Event], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with watch(mode) as listener:  # type: ignore[arg-type]
        for event in events:
            listener(event)
    out, err = capsys.readouterr()
    data, people = (out, err) if mode == "json" else (err, out)
    assert people == ""
    assert "2.034" in data  # the best loss
    assert "runs/tiny-1/best.pt" in data
    assert "the disk is nearly full [not markup]" in data
    if mode != "live":  # the last frame of a small window has no room for a sample
        assert "def " in data
    assert "\x07" not in data


def test_plain_lines_read_like_a_log(events: list[Event], capsys: pytest.CaptureFixture[str]) -> None:
    with watch("plain") as listener:
        for event in events:
            listener(event)
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert steps[0].startswith(
        "step   1/100  loss  8.6327  lr 2.0e-03  norm 0.812   2.00 it/s  8.19 K tok/s  eta "
    )
    assert steps[-1].startswith("step 100/100")
    # One line in five seconds: steps take half a second.
    assert len(steps) == 11
    assert len({line.index("it/s") for line in steps}) == 1
    assert sum(line.startswith("validation at step") for line in lines) == 2
    assert sum(line.startswith("checkpoint at step") for line in lines) == 2
    assert sum(line.startswith("sample at step") for line in lines) == 2
    assert "  | def read(path):" in lines
    assert any(line.startswith("warning: the disk") for line in lines)
    assert any(line.startswith("tokenizing") and "MiB/s" in line and "done in 5.0s" in line for line in lines)
    assert any(line.startswith("finished after step 100: 50s") for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_json_lines_hold_every_event_and_few_progresses(
    events: list[Event], capsys: pytest.CaptureFixture[str]
) -> None:
    often = [
        Progress(
            time=1000 + number / 100,
            stage="reading",
            done=number,
            total=500,
            unit="files",
            finished=number == 500,
        )
        for number in range(501)
    ]
    with watch("json") as listener:
        for event in [*often, *events]:
            listener(event)
    out, err = capsys.readouterr()
    assert err == ""
    back = [from_json(line) for line in out.splitlines()]
    assert sum(isinstance(event, StepDone) for event in back) == 100
    reading = [event for event in back if isinstance(event, Progress) and event.stage == "reading"]
    assert len(reading) == 11  # two a second for five seconds, and the last
    assert reading[-1].finished
    assert {json.loads(line)["event"] for line in out.splitlines()} == {event.kind for event in events}


@pytest.mark.parametrize(
    ("json_asked", "headless", "terminal", "term", "mode"),
    [
        (False, False, True, "xterm", "live"),
        (False, False, False, "xterm", "plain"),
        (False, False, True, "dumb", "plain"),
        (False, True, True, "xterm", "plain"),
        (True, False, True, "xterm", "json"),
        (True, True, False, "dumb", "json"),
    ],
)
def test_the_mode_follows_flags_and_terminal(
    monkeypatch: pytest.MonkeyPatch, json_asked: bool, headless: bool, terminal: bool, term: str, mode: str
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("TERM", term)
    assert choose_mode(json_asked, headless) == mode


def play_in_terminal(*arguments: str, size: tuple[int, int] = (80, 24)) -> tuple[bytes, bytes, int]:
    """Play the run in a pseudo-terminal: what stderr's terminal got, stdout, the exit status."""
    pty = pytest.importorskip("pty")
    fcntl, struct, termios = (pytest.importorskip(name) for name in ("fcntl", "struct", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(size[0]), "LINES": str(size[1])}
    environment.pop("NO_COLOR", None)
    child = subprocess.Popen(
        [sys.executable, "-c", PLAY, str(TESTS / "ui"), str(TESTS / "support"), *arguments],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the way Linux tells that the other side is closed
            chunk = b""
        if not chunk:
            break
        written += chunk
    os.close(ours)
    out, _ = child.communicate()
    return written, out, child.returncode


def test_the_live_screen_in_a_terminal_and_the_terminal_after_it() -> None:
    pyte = pytest.importorskip("pyte")
    written, out, status = play_in_terminal("live")
    assert status == 0
    assert out == b""
    before, inside = written.split(b"\x1b[?1049h")
    inside, after = inside.split(b"\x1b[?1049l")
    assert b"tokenizing" in before
    assert written.rfind(b"\x1b[?25h") > written.rfind(b"\x1b[?25l")  # the cursor is back
    assert "finished after step 100" in after.decode()
    terminal = pyte.Screen(80, 24)
    pyte.ByteStream(terminal).feed(inside)
    display = terminal.display
    assert display[0].startswith(" tiny-1 · preset tiny")
    assert [display[row][0] for row in (3, 14, 15, 22)] == ["╭", "╰", "╭", "╰"]
    assert all(display[row].rstrip()[-1] in "╮│╯" for row in range(3, 23))


def test_a_run_that_breaks_off_leaves_the_terminal_as_it_was() -> None:
    written, _, status = play_in_terminal("live", "break")
    assert status == 1
    assert written.count(b"\x1b[?1049h") == written.count(b"\x1b[?1049l") == 1
    assert written.rfind(b"\x1b[?25h") > written.rfind(b"\x1b[?25l")
    assert written.rstrip().endswith(b"broken off")


def test_what_libraries_write_on_stderr_becomes_a_notice() -> None:
    written, _, _ = play_in_terminal("live", "warn")
    after = written.split(b"\x1b[?1049l")[1].decode()
    assert "a library says something" in re.sub(r"\x1b\[[0-9;]*m", "", after)


def test_a_resumed_run_shows_its_curve_from_the_beginning(
    tmp_path: Path, events: list[Event], capsys: pytest.CaptureFixture[str]
) -> None:
    from cpulm.runlog.writer import MetricsWriter

    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, pytest.fail) as writer:
        for event in events[:60]:
            writer(event)
    with watch("live", history=path) as listener:
        for event in events:
            if event.kind == "run_started" or getattr(event, "step", 0) > 60:
                listener(event)
    axis = next(line for line in capsys.readouterr().err.splitlines() if re.search(r"│ +1 .* 100│", line))
    assert axis
