"""Turns stop signals into a flag that running work can check; a second Ctrl-C ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from cpulm import exit_codes
from cpulm.errors import AbortedError

# A closed terminal sends SIGHUP; on Windows, Ctrl-Break and a closed console send SIGBREAK. No system has
# both.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")

GRACE_SECONDS = 1.0
"""How long the second Ctrl-C waits for Python to exit; a long matrix product in C would delay it."""

ABORTED = "aborted by Ctrl-C"
STOPPING = "stopping"
"""The word that begins the notice that answers a request to stop."""

ABANDONED = "cpulm-abandoned"
"""The name of a thread in which a library still computes what nobody waits for: it cannot be interrupted."""


@contextmanager
def ctrl_c_during_imports() -> Iterator[None]:
    """In the block, Ctrl-C while a module is imported ends the process at once, with exit code 130.

    A KeyboardInterrupt there is not to be relied on: torch imports numpy from C++ and drops any error, so
    that one Ctrl-C in ten was lost, and torch went on without numpy. Elsewhere it raises KeyboardInterrupt.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _on_ctrl_c)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _on_ctrl_c(number: int, frame: FrameType | None) -> None:
    within = frame
    while within is not None and not within.f_code.co_filename.startswith("<frozen importlib"):
        within = within.f_back
    if within is None:
        signal.default_int_handler(number, frame)
    with contextlib.suppress(OSError):
        show_line = b"\r\x1b[2K\x1b[?25h" if os.isatty(2) else b""  # a line of "loading" hid the cursor
        os.write(2, show_line + f"stopped: {ABORTED}\n".encode())
    os._exit(exit_codes.ABORTED)


class StopNow(BaseException):
    """A stop request in a section that may be interrupted at any point.

    It does not derive from Exception, so that code that handles errors does not catch it.
    """


class StopRequest:
    """Turns stop signals into a flag, in a ``with`` block.

    Call the object to check whether a stop was requested; ``why`` names the origin of the first request. The
    second Ctrl-C raises AbortedError in the main thread. If the main thread does not return to Python within
    :data:`GRACE_SECONDS`, the process ends immediately with exit code 130.

    Args:
        leave: called before the process ends immediately, to restore the terminal.

    Attributes:
        on_signal: called in another thread as soon as the first signal arrives, while the main thread may be
            seconds away from Python; None: nobody is told.
        unsaved: says in words what the second Ctrl-C loses.
        on_exit: called in another thread before the process ends immediately.
    """

    def __init__(self, leave: Callable[[], None] | None = None) -> None:
        self.why: str | None = None
        self.on_signal: Callable[[], None] | None = None
        self.unsaved: Callable[[], str] = lambda: "what was not saved is lost"
        self.on_exit: Callable[[], None] | None = None
        self._leave = leave
        self._interruptible = False
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._wakeup: tuple[socket.socket, socket.socket, int] | None = None

    def __call__(self) -> bool:
        return self.why is not None

    def request(self, why: str) -> None:
        """Request a stop, from any thread; ``why`` names who requested it."""
        if self.why is None:
            self.why = why
            if self._interruptible:
                self._interrupt_main_thread()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Interrupt the block with StopNow as soon as a stop is requested.

        For work that cannot check the flag and can be repeated, such as compiling.

        Raises:
            StopNow: at the request, or at the start if a stop was requested before.
        """
        if self():
            raise StopNow
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def __enter__(self) -> StopRequest:
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            # Signals that the parent ignores stay ignored: nohup ignores SIGHUP, a shell's `&` SIGINT.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        self._watch_signals()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._wakeup[2])
            self._wakeup[1].close()  # the watching thread then reads an end of file and closes its socket
            self._wakeup = None
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self() and number == signal.SIGINT:
            raise AbortedError(f"aborted; {self.unsaved()}")
        if self.why is None:
            self.why = signal.Signals(number).name
        if self._interruptible:
            raise StopNow

    def _watch_signals(self) -> None:
        """Start a thread that sees each signal as soon as it arrives.

        Python runs its handlers only in the main thread, between two bytecodes; during a backward pass that
        may take seconds. The C handler writes the signal's number to a socket at once.
        """
        ours, its = socket.socketpair()
        its.setblocking(False)
        previous = signal.set_wakeup_fd(its.fileno(), warn_on_full_buffer=False)
        self._wakeup = (ours, its, previous)
        threading.Thread(target=self._leave_on_second, args=(ours,), name="cpulm-stop", daemon=True).start()

    def _leave_on_second(self, signals: socket.socket) -> None:
        interrupts, told = 0, False
        with signals:
            while number := signals.recv(1):
                if not told and self.on_signal is not None and signal.Signals(number[0]).name in _SIGNALS:
                    told = True
                    self.on_signal()
                interrupts += number[0] == signal.SIGINT
                if interrupts >= 2 or (interrupts and self.why not in (None, "SIGINT")):
                    break
            else:
                return
            signals.settimeout(GRACE_SECONDS)
            with contextlib.suppress(TimeoutError):
                while signals.recv(1):
                    pass
                return  # the main thread has left the block
        if self.on_exit is not None:
            self.on_exit()
        if self._leave is not None:
            self._leave()
        os._exit(exit_codes.ABORTED)

    def _interrupt_main_thread(self) -> None:
        """Run :meth:`_on_signal` in the main thread, even while it waits for a program or the disk."""
        main = threading.main_thread().ident
        number = next((number for number in self._previous if number != signal.SIGINT), None)
        if number is None:  # all signals are ignored: the section ends by itself
            return
        if hasattr(signal, "pthread_kill") and main is not None:
            signal.pthread_kill(main, number)
        else:
            signal.raise_signal(number)
