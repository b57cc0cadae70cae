"""Which of the three outputs a command uses, and the way to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

from cpulm.events import Event, Progress, to_json
from cpulm.ui.console import write_json_line

Listener = Callable[[Event], None]
Mode = Literal["live", "plain", "json"]

_PROGRESS_SECONDS = 0.5


def choose_mode(json: bool, headless: bool) -> Mode:
    """JSON lines if asked for; plain lines if asked for or if stderr is no capable terminal; else live."""
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
