"""The dashboard on a terminal: its own thread draws the newest snapshot, rarely and cheaply."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cpulm.events import (
    CheckpointSaved,
    Event,
    GenerationStarted,
    Listener,
    Notice,
    RolledBack,
    SampleMade,
    StepDone,
    Validated,
)
from cpulm.runlog.tail import read_events
from cpulm.ui.canvas import ASCII, UNICODE, Glyphs
from cpulm.ui.console import is_utf8, stderr
from cpulm.ui.dashboard import render, render_summary
from cpulm.ui.plain import PlainLines
from cpulm.ui.replay import snapshot_of
from cpulm.ui.snapshot import Snapshot, fold

_LEAST_INTERVAL_SECONDS = 0.5
_MOST_INTERVAL_SECONDS = 3.0
_SHARE = 0.01
"""A frame may take this fraction of the time between frames: one percent of one core."""
_MOST_WAITING = 10_000
_KEPT_HISTORY = (StepDone, GenerationStarted, Validated, SampleMade, CheckpointSaved, RolledBack)


@contextmanager
def live_screen(
    history: Path | None = None, *, clock: Callable[[], float] = time.time, share: float = _SHARE
) -> Iterator[LiveScreen]:
    """Show the dashboard on stderr during the block; then restore the terminal and print a summary.

    Before a run starts, stages are shown in place and stay in the scrollback; the run itself uses the
    terminal's alternate screen. What Python code writes to ``sys.stderr`` meanwhile becomes a notice.

    Args:
        history: the ``metrics.jsonl`` of a resumed run, so that the curve starts where the run did.
        clock: seconds since the epoch, for ages.
        share: the share of one core's time for drawing.
    """
    real = sys.stderr
    screen = LiveScreen(stderr(), history, clock, share)
    sys.stderr = _Captured(real, screen)
    try:
        with _suspendable(screen):
            screen.start()
            try:
                yield screen
            finally:
                screen.close()
    finally:
        sys.stderr = real


def print_summary(snapshot: Snapshot) -> None:
    """Write the summary that stays in the terminal after a run to stderr."""
    console = stderr()
    _print_summary(snapshot, console, _glyphs(console))


def _print_summary(snapshot: Snapshot, console: Console, glyphs: Glyphs) -> None:
    console.print(render_summary(snapshot, console.width, glyphs, console.height))
    console.line()


def _glyphs(console: Console) -> Glyphs:
    return UNICODE if is_utf8(console.file) else ASCII  # type: ignore[arg-type]


class LiveScreen:
    """The listener, the drawing thread and the terminal's state."""

    def __init__(
        self, console: Console, history: Path | None, clock: Callable[[], float], share: float
    ) -> None:
        self._console = console
        self._glyphs = _glyphs(console)
        self._history = history
        self._clock = clock
        self._share = share
        self._events: deque[Event] = deque()
        self._snapshot = Snapshot()
        self._folding = threading.Lock()
        self._drawing = threading.RLock()
        self._live: Live | None = None
        self._fallback: Callable[[Event], None] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpulm-screen", daemon=True)

    def __call__(self, event: Event) -> None:
        if self._fallback is not None:
            self._fallback(event)
            return
        self._events.append(event)
        if len(self._events) > _MOST_WAITING:
            # If the terminal accepts no output, the queue must not grow all night.
            self._catch_up()

    def join(self, snapshot: Snapshot) -> None:
        """Show the current state of a run and forget what was shown before."""
        with self._folding:
            self._events.clear()
            self._snapshot = snapshot

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Draw the last state, restore the terminal, leave a summary."""
        self._closing.set()
        try:
            self._thread.join()
        finally:
            # Also if a second Ctrl-C interrupted the wait.
            self.leave()

    def leave(self) -> None:
        """Restore the terminal; the next frame takes it again."""
        with self._drawing:
            live, self._live = self._live, None
            if live is not None:
                live.stop()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Leave the terminal and draw nothing during the block."""
        with self._drawing:
            self.leave()
            yield

    def _run(self) -> None:
        try:
            self._read_history()
            wait = 0.0
            while not self._closing.wait(wait):
                began = time.thread_time()
                self._draw(self._catch_up())
                cost = time.thread_time() - began
                wait = min(_MOST_INTERVAL_SECONDS, max(_LEAST_INTERVAL_SECONDS, cost / self._share))
            self._end(self._catch_up())
        except OSError:
            # The terminal is gone, as after a lost connection; the run continues.
            self._live = None
            self._fallback = _ignore
        except Exception:
            # A fault of the display must not hide or end a run: report it and continue with plain lines.
            self.leave()
            self._console.print(Text(traceback.format_exc()), soft_wrap=True)
            self._fallback = PlainLines(lambda line: self._console.print(line, soft_wrap=True))

    def _read_history(self) -> None:
        if self._history is not None:
            past = (event for event in read_events(self._history) if isinstance(event, _KEPT_HISTORY))
            self._snapshot = snapshot_of(past, self._snapshot)._replace(notices=())

    def _catch_up(self) -> Snapshot:
        with self._folding:
            snapshot, events = self._snapshot, self._events
            while events:
                snapshot = fold(snapshot, events.popleft())
            self._snapshot = snapshot
            return snapshot

    def _draw(self, snapshot: Snapshot) -> None:
        with self._drawing:
            whole = snapshot.started is not None
            if self._live is not None and self._live._screen != whole:
                self._finish_stages(snapshot)
            if not whole and snapshot.stage is None and not snapshot.stages and not snapshot.notices:
                return
            if self._live is None:
                self._live = Live(
                    console=self._console,
                    screen=whole,
                    auto_refresh=False,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
            width, height = self._console.size
            self._live.update(
                render(snapshot, width, height, now=self._clock(), glyphs=self._glyphs), refresh=True
            )

    def _finish_stages(self, snapshot: Snapshot) -> None:
        """Leave the terminal; the last frame of the stages stays above what follows."""
        if self._live is not None and not self._live._screen:
            width, height = self._console.size
            stages = snapshot._replace(started=None, stage=None)
            self._live.update(render(stages, width, height, glyphs=self._glyphs))
        self.leave()

    def _end(self, snapshot: Snapshot) -> None:
        with self._drawing:
            if snapshot.started is None:
                self._draw(snapshot)
                self.leave()
                return
            self._finish_stages(snapshot)
            _print_summary(snapshot, self._console, self._glyphs)


def _ignore(_event: Event) -> None:
    """Discard an event that has no screen any more."""


class _Captured(io.TextIOBase):
    """Replaces ``sys.stderr`` under the dashboard: each line becomes a notice."""

    def __init__(self, real: TextIO, listener: Listener) -> None:
        self._real = real
        self._listener = listener
        self._rest = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._real.encoding

    def fileno(self) -> int:
        return self._real.fileno()

    def writable(self) -> bool:
        return True

    def write(self, content: str) -> int:
        *lines, self._rest = (self._rest + content).split("\n")
        for line in lines:
            words = Text.from_ansi(line).plain.strip()
            if words:
                self._listener(Notice(level="warning", message=words.removeprefix("warning: ")))
        return len(content)


@contextmanager
def _suspendable(screen: LiveScreen) -> Iterator[None]:
    """Make Ctrl-Z leave the terminal usable; ``fg`` restores the dashboard."""
    if not hasattr(signal, "SIGTSTP") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def suspend(number: int, _frame: FrameType | None) -> None:
        with screen.away():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            signal.signal(number, suspend)

    previous = signal.signal(signal.SIGTSTP, suspend)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, previous if previous is not None else signal.SIG_DFL)
