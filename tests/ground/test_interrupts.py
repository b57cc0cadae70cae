"""Stop requests: the first one sets a flag, the second one exits, and an interruptible block ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer

from cpulm.cli.parser import Commands
from cpulm.command import cpulm_command
from cpulm.errors import AbortedError
from cpulm.interrupts import StopNow, StopRequest

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"])
def test_the_first_signal_is_noted(name: str) -> None:
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"no {name} here")
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        assert stop.why == name
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_ctrl_c_after_a_request_leaves(first: str) -> None:
    with StopRequest() as stop:
        signal.raise_signal(getattr(signal, first))
        assert stop()
        with pytest.raises(AbortedError) as caught:
            signal.raise_signal(signal.SIGINT)
    assert caught.value.exit_code == 130


def test_a_thread_may_ask() -> None:
    with StopRequest() as stop:
        thread = threading.Thread(target=stop.request, args=("cpulm stop",))
        thread.start()
        thread.join()
        assert stop.why == "cpulm stop"
        stop.request("somebody else")
        assert stop.why == "cpulm stop"


def test_work_that_cannot_check_for_a_stop_is_interrupted() -> None:
    with StopRequest() as stop:
        began = time.monotonic()
        threading.Timer(0.2, stop.request, ("cpulm stop",)).start()
        with pytest.raises(StopNow), stop.interruptible():
            subprocess.run([sys.executable, "-c", "import time; time.sleep(30)"], check=False)
        assert time.monotonic() - began < 10
        with pytest.raises(StopNow), stop.interruptible():
            pytest.fail("there was a request already")


def test_outside_of_such_work_a_request_raises_nothing() -> None:
    with StopRequest() as stop:
        with stop.interruptible():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert stop()


PRESSED_TWICE = """
import hashlib, os, pathlib, signal, sys, threading, time
from cpulm.interrupts import StopRequest

def press() -> None:
    for _ in range(2):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

with StopRequest(pathlib.Path(sys.argv[1]).touch):
    threading.Thread(target=press).start()
    hashlib.pbkdf2_hmac("sha256", b"minutes", b"in C", 400_000_000)
"""


@POSIX
def test_the_second_ctrl_c_ends_a_process_that_is_deep_in_c(tmp_path: Path) -> None:
    left = tmp_path / "left"
    done = subprocess.run([sys.executable, "-c", PRESSED_TWICE, str(left)], timeout=60, check=False)
    assert done.returncode == 130
    assert left.exists()


IGNORED = """
import os, signal, sys
from cpulm.interrupts import StopRequest

ignored = [signal.Signals[name] for name in sys.argv[1:]]
with StopRequest() as stop:
    for number in ignored:
        os.kill(os.getpid(), number)
    print(stop.why)
    os.kill(os.getpid(), signal.SIGTERM)
    print(stop.why)
print([signal.getsignal(number) is signal.SIG_IGN for number in ignored])
"""


@POSIX
@pytest.mark.parametrize("names", [["SIGHUP"], ["SIGINT"], ["SIGHUP", "SIGINT"]])
def test_a_signal_that_whoever_started_us_ignores_stays_ignored(names: list[str]) -> None:
    """``nohup`` ignores SIGHUP, and a shell without job control SIGINT for what it starts with ``&``."""
    program = [sys.executable, "-c", IGNORED, *names]
    shell = ["sh", "-c", f"trap '' {' '.join(name[3:] for name in names)}; exec \"$@\"", "sh", *program]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["None", "SIGTERM", str([True] * len(names))]


@POSIX
def test_work_is_interrupted_even_if_the_usual_signals_are_ignored() -> None:
    program = (
        "import subprocess, sys, threading\nfrom cpulm.interrupts import StopNow, StopRequest\n"
        "with StopRequest() as stop:\n"
        "    threading.Timer(0.2, stop.request, ('cpulm stop',)).start()\n"
        "    try:\n"
        "        with stop.interruptible():\n"
        "            subprocess.run([sys.executable, '-c', 'import time; time.sleep(50)'])\n"
        "    except StopNow:\n"
        "        print('left')\n"
    )
    shell = ["sh", "-c", "trap '' INT TERM; exec \"$@\"", "sh", sys.executable, "-c", program]
    assert subprocess.run(shell, capture_output=True, text=True, timeout=40, check=True).stdout == "left\n"


@pytest.mark.parametrize(
    ("module", "after"),
    [("typer", ""), ("rich", "except BaseException: pass")],
    ids=["while the commands are loaded", "in an import that drops errors, as torch's of numpy"],
)
def test_ctrl_c_during_an_import_ends_the_program(module: str, after: str, tmp_path: Path) -> None:
    """One Ctrl-C in ten was lost while torch was loaded, which then went on without numpy."""
    interrupt = "import signal; signal.raise_signal(signal.SIGINT)"
    (tmp_path / f"{module}.py").write_text(f"try: {interrupt}\n{after or 'finally: pass'}\n")
    done = subprocess.run(
        cpulm_command("--version"),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped: aborted by Ctrl-C\n")


def test_ctrl_c_in_a_command_is_an_error_with_a_message() -> None:
    app = typer.Typer(cls=Commands)
    app.callback()(lambda: None)
    app.command("wait")(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(AbortedError, match="aborted by Ctrl-C"):
        app(["wait"], standalone_mode=False)
