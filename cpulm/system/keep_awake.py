"""Keeps the machine awake during a run.

wakepy requests it from the desktop on Linux, from ``caffeinate`` on macOS and from Windows itself. On Linux
without a desktop, ``systemd-inhibit`` requests it from systemd's login manager, as long as a child process
runs that ends with this process. All of them release the machine when this process ends, even if killed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cpulm.system.small_file import read_small_file

_PATIENCE_SECONDS = 0.5
"""The longest time that the start of a run waits for the answer."""
_ANSWER_SECONDS = 3.0
"""The longest time that ``systemd-inhibit`` may take to acquire its lock."""
_LET_GO_SECONDS = 3.0
"""The longest time that the end of a run waits for the release."""

_STILL_POSSIBLE = {
    "linux": "closing the lid, an empty battery or a user's own command still put it to sleep",
    "darwin": "closing the lid, an empty battery or the menu still put it to sleep",
    "win32": "closing the lid, an empty battery, the power button or an update that restarts Windows still"
    " end the night, and on battery some laptops sleep once the screen is off",
}


class Awake:
    """The request to stay awake, and its result."""

    def __init__(self) -> None:
        self._asked_at = time.monotonic()
        self._answered = threading.Event()
        self._release = threading.Event()
        self._held = False
        self._note = "still asking the system to keep this machine awake"

    @property
    def held(self) -> bool:
        """Whether the machine is kept awake; waits like :attr:`note`."""
        self._wait()
        return self._held

    @property
    def note(self) -> str:
        """The result in words, empty on a system that has no sleep.

        It waits for the answer, at most until half a second after the request.
        """
        self._wait()
        return self._note

    def _wait(self) -> None:
        self._answered.wait(max(0.0, self._asked_at + _PATIENCE_SECONDS - time.monotonic()))

    def _hold(self) -> None:
        """Request, report and hold until released; wakepy requires that one thread does all of it."""
        with suppress(Exception), ExitStack() as stack:  # a failure here must not end a run
            try:
                self._note, self._held = _ask(stack), True
            except Exception as error:
                remedy = "set its power settings so that it does not sleep"
                self._note = f"cannot keep this machine awake: {error}; {remedy}"
            self._answered.set()
            self._release.wait()


@contextmanager
def keep_awake() -> Iterator[Awake]:
    """Keep the system from going to sleep by itself until the context ends.

    A thread makes the request, so that it never delays a run; it raises no errors.
    """
    awake = Awake()
    thread = threading.Thread(target=awake._hold, name="cpulm-awake", daemon=True)
    thread.start()
    try:
        yield awake
    finally:
        awake._release.set()
        thread.join(timeout=_LET_GO_SECONDS)


class _RefusalError(Exception):
    """The reason, in words, why the machine cannot be kept awake."""


def _ask(stack: ExitStack) -> str:
    """Keep the machine awake while ``stack`` is open; return the result in words."""
    linux = sys.platform == "linux"
    if linux and _inside_windows():
        raise _RefusalError("this is WSL, and only Windows itself decides when it sleeps")
    if linux and without_sleep():
        return ""  # nothing that a person at this system could do about it
    try:
        through = _through_wakepy(stack)
    except Exception:
        if not linux:
            raise
        through = _through_systemd(stack)
    limits = _STILL_POSSIBLE.get(sys.platform, _STILL_POSSIBLE["linux"])
    return f"this machine is kept awake through {through}; {limits}"


def _through_wakepy(stack: ExitStack) -> str:
    from wakepy import keep

    mode = stack.enter_context(keep.running(on_fail="pass"))
    if mode.active and mode.method is not None:
        return mode.method.name
    reasons = [method.failure_reason for method in mode.result.list_methods()]
    raise _RefusalError(reasons[0] if reasons else "this system is unknown")


def _through_systemd(stack: ExitStack) -> str:
    """Hold an inhibitor lock of systemd's login manager.

    Without a local session, for example over ssh, systemd grants only the lock against idle sleep, which a
    desktop that suspends the machine ignores.
    """
    program = shutil.which("systemd-inhibit")
    if program is None:
        raise _RefusalError(f"no desktop answered, and there is no systemd-inhibit{_in_a_container()}")
    try:
        stack.enter_context(_inhibitor(program, "sleep:idle"))
        return "systemd-inhibit"
    except _RefusalError as error:
        problem = error
    try:
        stack.enter_context(_inhibitor(program, "idle"))
        return "systemd-inhibit, which prevents only sleep from idleness"
    except _RefusalError:
        where = _in_a_container()
        raise _RefusalError(f"no desktop answered, and systemd-inhibit says '{problem}'{where}") from None


@contextmanager
def _inhibitor(program: str, what: str) -> Iterator[None]:
    """Run ``cat`` under ``systemd-inhibit``; it ends with its input, so also when this process ends."""
    process = subprocess.Popen(
        [program, f"--what={what}", "--mode=block", "--who=cpulm", "--why=training a model", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C must not reach it, and it must not prompt for a password
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(_ANSWER_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        with suppress(OSError):  # it has ended already
            process.stdin.write(b"held\n")
            process.stdin.flush()
        if process.stdout.readline() != b"held\n":  # cat echoes it once the lock is held
            if late.is_set():
                raise TimeoutError(f"systemd-inhibit has not answered within {_ANSWER_SECONDS:g} seconds")
            said = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise _RefusalError(said[-1] if said else "nothing")
        timer.cancel()
        yield
    finally:
        timer.cancel()
        with suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        process.stderr.close()
        try:
            process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _inside_windows(version: Path = Path("/proc/version")) -> bool:
    """Whether this Linux is the Windows Subsystem for Linux."""
    return "microsoft" in read_small_file(version).lower()


def without_sleep(states: Path = Path("/sys/power/state")) -> bool:
    """Whether this Linux kernel has no sleep state, as in many virtual machines."""
    return states.exists() and not read_small_file(states).strip()


def _in_a_container(marks: tuple[str, ...] = ("/.dockerenv", "/run/.containerenv")) -> str:
    if any(Path(mark).exists() for mark in marks):
        return " (this is a container: its host decides when it sleeps)"
    return ""
