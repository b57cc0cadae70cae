"""Keeping awake: through the desktop on a real message bus, through systemd-inhibit, and not at all.

Where a test needs the system to hold the machine, a small program stands in for the system's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpulm.system import keep_awake as awake
from cpulm.system.keep_awake import _in_a_container, _inside_windows, keep_awake, without_sleep

LINUX = sys.platform == "linux"
needs_linux = pytest.mark.skipif(not LINUX, reason="asks as on Linux")


@pytest.fixture(autouse=True)
def _a_system_that_could_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain Linux without a desktop; what wakepy would read from the environment is gone."""
    monkeypatch.setattr(awake, "without_sleep", lambda: False)
    monkeypatch.setattr(awake, "_inside_windows", lambda: False)
    for name in ("WAKEPY_FAKE_SUCCESS", "WAKEPY_FORCE_FAILURE", "XDG_SESSION_DESKTOP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")


Inhibitor = Callable[[str], Path]


@pytest.fixture
def inhibitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inhibitor:
    """Put a ``systemd-inhibit`` with the given body before the system's own."""

    def make(body: str) -> Path:
        program = tmp_path / "systemd-inhibit"
        program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return tmp_path / "holds"

    return make


HOLDS = (
    'here=$(dirname "$0"); echo "$@" > "$here/asked"; touch "$here/holds"; shift 4; "$@"; rm "$here/holds"'
)
"""Takes the lock, runs the command, lets go: what systemd-inhibit does."""


def wait_until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@needs_linux
def test_without_a_desktop_systemd_holds_until_the_end(inhibitor: Inhibitor, tmp_path: Path) -> None:
    holds = inhibitor(HOLDS)
    with keep_awake() as kept:
        assert kept.held
        assert kept.note.startswith("this machine is kept awake through systemd-inhibit; ")
        assert "closing the lid" in kept.note
        assert holds.exists()
    assert not holds.exists()
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert asked.startswith("--what=sleep:idle --mode=block --who=cpulm ")
    assert not any(thread.name == "cpulm-awake" for thread in threading.enumerate())


@needs_linux
def test_without_the_right_to_forbid_sleep_idleness_at_least_is_held_off(inhibitor: Inhibitor) -> None:
    inhibitor(f'case "$1" in *sleep*) echo "Failed to inhibit: Access denied" >&2; exit 1;; esac; {HOLDS}')
    with keep_awake() as kept:
        assert kept.held
        assert "systemd-inhibit, which prevents only sleep from idleness; " in kept.note


@needs_linux
def test_a_refusal_is_reported_with_its_reason(inhibitor: Inhibitor) -> None:
    inhibitor('echo "Failed to inhibit: Access denied" >&2; exit 1')
    with keep_awake() as kept:
        assert not kept.held
        assert kept.note.startswith("cannot keep this machine awake: no desktop answered, and")
        assert "systemd-inhibit says 'Failed to inhibit: Access denied'" in kept.note
        assert kept.note.endswith("; set its power settings so that it does not sleep")


@needs_linux
def test_a_missing_program_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with keep_awake() as kept:
        assert not kept.held
        assert "there is no systemd-inhibit" in kept.note


@needs_linux
def test_a_system_that_does_not_answer_delays_neither_start_nor_end(
    inhibitor: Inhibitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awake, "_ANSWER_SECONDS", 1.0)
    inhibitor("exec sleep 60")
    began = time.monotonic()
    with keep_awake() as kept:
        assert time.monotonic() - began < 0.2
        assert kept.note == "still asking the system to keep this machine awake"
        assert not kept.held
        assert time.monotonic() - began < 0.9
        assert wait_until(lambda: "cannot keep" in kept.note)
        assert "systemd-inhibit has not answered within 1 seconds" in kept.note
    assert time.monotonic() - began < 2.5


@needs_linux
def test_the_lock_is_let_go_after_kill(inhibitor: Inhibitor) -> None:
    """No handler runs at SIGKILL: the lock ends because its child reads from a pipe that has closed."""
    holds = inhibitor(HOLDS)
    program = (
        "import time\n"
        "from cpulm.system import keep_awake as awake\n"
        "awake._ANSWER_SECONDS = 60.0\n"
        "awake.without_sleep = lambda: False\n"
        "with awake.keep_awake() as kept:\n"
        "    while not kept.held: time.sleep(0.01)\n"
        "    print(kept.held, flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "True\n"
        assert holds.exists()
    finally:
        child.kill()
        child.communicate()
    assert wait_until(lambda: not holds.exists())


@needs_linux
def test_ctrl_c_does_not_reach_the_holder(inhibitor: Inhibitor) -> None:
    """A stop by Ctrl-C writes a last checkpoint first; the machine stays awake for it."""
    holds = inhibitor(HOLDS)
    program = (
        "import signal, sys, time\n"
        "from cpulm.system import keep_awake as awake\n"
        "awake._ANSWER_SECONDS = 60.0\n"
        "awake.without_sleep = lambda: False\n"
        "signal.signal(signal.SIGINT, lambda *_: print('noted', flush=True))\n"
        "with awake.keep_awake() as kept:\n"
        "    while not kept.held: time.sleep(0.01)\n"
        "    print(kept.held, flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "True\n"
        os.killpg(child.pid, signal.SIGINT)
        assert child.stdout.readline() == "noted\n"
        time.sleep(0.3)
        assert holds.exists()
    finally:
        child.communicate("end\n", timeout=30)
    assert wait_until(lambda: not holds.exists())


GNOME = """
import sys
from jeepney import DBusAddress, MessageType, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

connection = open_dbus_connection("SESSION")
connection.send_and_get_reply(message_bus.RequestName("org.gnome.SessionManager"))
print("ready", flush=True)
while True:
    message = connection.receive()
    if message.header.message_type != MessageType.method_call:
        continue
    member = [value for key, value in message.header.fields.items() if key.name == "member"][0]
    print(member, *message.body, flush=True)
    inhibit = member == "Inhibit"
    connection.send(new_method_return(message, "u" if inhibit else None, (7,) if inhibit else ()))
"""
"""As much of GNOME's session manager as is asked: ``Inhibit`` and ``Uninhibit``."""


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A message bus with a session manager on it."""
    if not LINUX or shutil.which("dbus-daemon") is None:
        pytest.skip("needs dbus-daemon")
    command = ["dbus-daemon", "--session", "--nofork", "--print-address"]
    bus = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert bus.stdout is not None
    try:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus.stdout.readline().strip())
        manager = subprocess.Popen([sys.executable, "-c", GNOME], stdout=subprocess.PIPE, text=True)
        assert manager.stdout is not None
        try:
            assert manager.stdout.readline() == "ready\n"
            yield manager
        finally:
            manager.kill()
            manager.communicate()
    finally:
        bus.terminate()
        bus.communicate()


def test_the_desktop_is_requested_first_and_released_at_the_end(desktop: subprocess.Popen[str]) -> None:
    assert desktop.stdout is not None
    with keep_awake() as kept:
        assert kept.held
        assert "kept awake through org.gnome.SessionManager; " in kept.note
        assert desktop.stdout.readline().startswith("Inhibit wakepy ")
    assert desktop.stdout.readline() == "Uninhibit 7\n"


@needs_linux
@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("Linux version 5.15.167.4-microsoft-standard-WSL2 (root@host) #1 SMP", True),
        ("Linux version 4.4.0-19041-Microsoft (Microsoft@Microsoft.com)", True),
        ("Linux version 6.12.0-arch1 (linux@archlinux)", False),
    ],
)
def test_windows_subsystem_says_that_windows_decides(
    version: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version").write_text(version, encoding="utf-8")
    assert _inside_windows(tmp_path / "version") is expected
    monkeypatch.setattr(awake, "_inside_windows", lambda: expected)
    monkeypatch.setattr(awake, "without_sleep", lambda: True)
    with keep_awake() as kept:
        assert ("only Windows itself decides" in kept.note) is expected
        assert kept.held is not expected
        assert bool(kept.note) is expected, "a run says nothing of a system without sleep"


def test_a_kernelwithout_sleep_needs_no_holding(tmp_path: Path) -> None:
    states = tmp_path / "state"
    assert not without_sleep(states)  # not told
    states.write_text("freeze mem disk\n", encoding="ascii")
    assert not without_sleep(states)
    states.write_text("\n", encoding="ascii")
    assert without_sleep(states)


def test_a_container_is_named(tmp_path: Path) -> None:
    mark = tmp_path / ".dockerenv"
    assert _in_a_container((str(mark),)) == ""
    mark.touch()
    assert "its host decides when it sleeps" in _in_a_container((str(mark),))


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, cpulm.system.keep_awake, cpulm.system.power\n"
        "print({'wakepy', 'psutil'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
