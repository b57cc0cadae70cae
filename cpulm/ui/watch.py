"""Chooses and opens one of the three outputs: live, plain or JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal, Protocol

from cpulm.events import Event, Progress, to_json
from cpulm.ui.console import json_for_stdout, write_json_line, write_text_or_warn
from cpulm.ui.snapshot import Snapshot

Listener = Callable[[Event], None]
Mode = Literal["live", "plain", "json"]

_PROGRESS_SECONDS = 0.5
_SHARE_OF_A_WATCHER = 0.005
"""Share of one core's time for drawing; reading and applying the events takes as much again."""


def choose_mode(json: bool, headless: bool) -> Mode:
    """JSON lines if requested; plain lines if requested or if stderr is not a capable terminal; else live."""
    if json:
        return "json"
    if headless or not sys.stderr.isatty() or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return "plain"
    from cpulm.ui.console import stderr

    # The old Windows console has no alternate screen.
    return "plain" if stderr().legacy_windows else "live"


def watch(mode: Mode, history: Path | None = None) -> AbstractContextManager[Listener]:
    """Return a context whose listener shows a run in the chosen mode.

    Args:
        mode: ``live`` and ``plain`` write on stderr only, ``json`` on stdout only.
        history: the ``metrics.jsonl`` of a run that is resumed, so that the live curve starts where
            the run did.
    """
    if mode == "json":
        return _json_lines()
    if mode == "plain":
        from cpulm.ui.plain import plain_lines

        return plain_lines()
    from cpulm.ui.live import live_screen

    return live_screen(history)


class View(Protocol):
    """Shows a run that another process trains."""

    def join(self, snapshot: Snapshot) -> None:
        """Start, or start again, from the run's current state."""

    def __call__(self, event: Event) -> None:
        """Show a new event."""


def look_on(mode: Mode, clock: Callable[[], float]) -> AbstractContextManager[View]:
    """Return a context whose view shows a run that this process does not train.

    Args:
        mode: as for :func:`watch`.
        clock: seconds since the epoch, for ages; another time than now if a run is replayed.
    """
    if mode == "json":
        return nullcontext(_JsonView())
    if mode == "plain":
        from cpulm.ui.plain import plain_lines

        return plain_lines()
    from cpulm.ui.live import live_screen

    return live_screen(clock=clock, share=_SHARE_OF_A_WATCHER)


def show_end(mode: Mode, snapshot: Snapshot) -> None:
    """Show the state of a run that is not being trained."""
    if mode == "live" and snapshot.started is not None:
        from cpulm.ui.live import print_summary

        print_summary(snapshot)
        return
    with look_on("json" if mode == "json" else "plain", lambda: snapshot.time) as view:
        view.join(snapshot)


class _JsonView:
    """Writes events as JSON lines on stdout, beginning with those that describe the current state."""

    def join(self, snapshot: Snapshot) -> None:
        newest = (
            snapshot.started,
            snapshot.step,
            snapshot.best,
            snapshot.validated if snapshot.validated is not snapshot.best else None,
            snapshot.checkpoint,
            snapshot.finished,
        )
        for event in sorted((event for event in newest if event is not None), key=lambda event: event.time):
            self(event)

    def __call__(self, event: Event) -> None:
        write_json_line(to_json(event))


@contextmanager
def _json_lines() -> Iterator[Listener]:
    """One line of JSON per event on stdout; at most two :class:`Progress` per second and stage.

    Lines that cannot be written do not end the run.
    """
    shown: dict[str, float] = {}

    def listener(event: Event) -> None:
        if isinstance(event, Progress):
            if not event.finished and event.time - shown.get(event.stage, -1.0) < _PROGRESS_SECONDS:
                return
            shown[event.stage] = event.time
        write_text_or_warn(json_for_stdout(to_json(event)) + "\n")

    yield listener
