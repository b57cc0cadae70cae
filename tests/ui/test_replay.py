"""Replays events at any speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from cpulm.events import Event, RunStarted, StepDone
from cpulm.ui.replay import Player

START = 1_700_000_000.0
Started = Callable[..., RunStarted]
Step = Callable[..., StepDone]


def kept(events: list[Event]) -> list[Event]:
    """Those that a run log keeps."""
    return [event for event in events if event.kind != "progress"]


def test_events_come_when_their_time_has_come(events: list[Event]) -> None:
    """Fifty seconds of a run, and an hour's sleep of the machine in it, at 100 times the speed."""
    events = kept(events)
    slept = [replace(event, time=event.time + 3600 * (number > 60)) for number, event in enumerate(events)]
    player = Player(100.0)
    began = time.monotonic()
    heard = []
    for event in player.play(slept, lambda: False):
        heard.append(event)
        assert player.now() == pytest.approx(event.time, abs=20)
    assert heard == slept
    assert 0.4 < time.monotonic() - began < 3


def test_the_time_between_two_parts_of_a_run_is_not_waited_for(started: Started, step: Step) -> None:
    parts: list[Event] = [
        started(START),
        step(1, 2.0, START + 1),
        started(START + 50),
        step(2, 2.0, START + 51),
    ]
    began = time.monotonic()
    assert list(Player(20.0).play(parts, lambda: False)) == parts
    assert time.monotonic() - began < 1.5


def test_a_replay_ends_on_request(events: list[Event]) -> None:
    heard: list[Event] = []
    began = time.monotonic()
    for event in Player(0.001).play(kept(events), lambda: time.monotonic() - began > 0.3):
        heard.append(event)
    assert time.monotonic() - began < 2
    assert 0 < len(heard) < 10
