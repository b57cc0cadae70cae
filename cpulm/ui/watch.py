"""Which of the three outputs a command uses, and the way to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal, Protocol

from cpulm.events import Event, Progress, to_json
from cpulm.ui.console import write_json_line
from cpulm.ui.snapshot import Snapshot

Listener = Callable[[Event], None]
Mode = Literal["live", "plain", "json"]

_PROGRESS_SECONDS = 0.5
_SHARE_OF_A_WATCHER = 0.005
"""Of one core's time, for drawing; reading and folding the events takes as much again."""


def choose_mode(json: bool, headless: bool) -> Mode:
    """JSON lines if requested; plain lines if requested or if stderr is no capable terminal; else live."""
    if json:
        return "json"
    if headless or not sys.stderr.isatty() or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return "plain"
    from cpulm.ui.console import stderr

    # The old Windows console knows no second screen.
    return "plain" if stderr().legacy_windows else "live"


def watch(mode: Mode, history: Path | None = None) -> AbstractContextManager[Listener]:
    """A listener that shows a run in the chosen way while the block lasts.

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
    """What shows a run that another process trains."""

    def join(self, snapshot: Snapshot) -> None:
        """Begin, or begin again, with the run as it stands."""

    def __call__(self, event: Event) -> None:
        """Show what is new."""


def look_on(mode: Mode, clock: Callable[[], float]) -> AbstractContextManager[View]:
    """A view of a run that this process does not train.

    Args:
        mode: as for :func:`watch`.
        clock: seconds since the epoch, for ages; another time than now where a run is played again.
    """
    if mode == "json":
        return nullcontext(_JsonView())
    if mode == "plain":
        from cpulm.ui.plain import plain_lines

        return plain_lines()
    from cpulm.ui.live import live_screen

    return live_screen(clock=clock, share=_SHARE_OF_A_WATCHER)


def show_end(mode: Mode, snapshot: Snapshot) -> None:
    """Show how a run stands that nobody trains."""
    if mode == "live" and snapshot.started is not None:
        from cpulm.ui.live import print_summary

        print_summary(snapshot)
        return
    with look_on("json" if mode == "json" else "plain", lambda: snapshot.time) as view:
        view.join(snapshot)


class _JsonView:
    """Events as lines of JSON on stdout; at the beginning those that tell how the run stands."""

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
    """One line of JSON per event on stdout; per stage at most two :class:`Progress` a second."""
    shown: dict[str, float] = {}

    def listener(event: Event) -> None:
        if isinstance(event, Progress):
            if not event.finished and event.time - shown.get(event.stage, -1.0) < _PROGRESS_SECONDS:
                return
            shown[event.stage] = event.time
        write_json_line(to_json(event))

    yield listener
