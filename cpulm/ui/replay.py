"""Folds the events of a run log into a snapshot, and plays them again at any speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from cpulm.events import Event, RunStarted
from cpulm.ui.snapshot import Snapshot, fold

_LONGEST_SLEEP_SECONDS = 0.1
_LONGEST_GAP_SECONDS = 60.0
"""A log without a line for longer is that of a machine that slept: the gap is not played."""


def snapshot_of(events: Iterable[Event], begin: Snapshot | None = None) -> Snapshot:
    """Return the snapshot after ``events``."""
    snapshot = Snapshot() if begin is None else begin
    for event in events:
        snapshot = fold(snapshot, event)
    return snapshot


class Player:
    """Plays events at ``speed`` times the pace at which they happened; :meth:`now` is the time of the run."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._played = self._began = 0.0

    def now(self) -> float:
        """Return the run's time, in seconds since the epoch."""
        return self._played + (time.monotonic() - self._began) * self._speed

    def play(self, events: Iterable[Event], should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Yield each event when its time has come. Between two parts of a run no time passes."""
        first = True
        for event in events:
            if first or isinstance(event, RunStarted) or event.time - self.now() > _LONGEST_GAP_SECONDS:
                self._played, self._began, first = event.time, time.monotonic(), False
            while (ahead := event.time - self.now()) > 0:
                if should_stop():
                    return
                time.sleep(min(_LONGEST_SLEEP_SECONDS, ahead / self._speed))
            if should_stop():
                return
            yield event
