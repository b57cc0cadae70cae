"""A record read back: what is new, however the file changes; a part for all; and all of it at any speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cpulm.events import Event, MachineSampled, RunStarted, StepDone, to_json
from cpulm.ui import replay
from cpulm.ui.replay import Player, Tail, recorded, snapshot_of

START = 1_700_000_000.0
Started = Callable[..., RunStarted]
Step = Callable[..., StepDone]


def lines(events: list[Event]) -> str:
    return "".join(to_json(event) + "\n" for event in events)


def kept(events: list[Event]) -> list[Event]:
    """Those that stand in a record, with the precision of a record."""
    return [event for event in events if event.kind != "progress"]


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_only_what_is_new_and_only_whole_lines(tmp_path: Path, events: list[Event]) -> None:
    path, events = tmp_path / "metrics.jsonl", kept(events)
    tail = Tail(path)
    assert list(tail.new_events()) == []
    path.write_text(lines(events[:10]))
    assert kinds(list(tail.new_events())) == kinds(events[:10])
    assert list(tail.new_events()) == []
    text = lines(events[10:12])
    with path.open("a") as file:
        file.write(text[:-20])
    assert kinds(list(tail.new_events())) == [events[10].kind]
    assert list(tail.new_events()) == []
    with path.open("a") as file:
        file.write(text[-20:])
    assert kinds(list(tail.new_events())) == [events[11].kind]
    assert not tail.is_replaced()


@pytest.mark.parametrize("how", ["replaced", "truncated"])
def test_a_file_that_is_another_one_is_read_from_its_start(
    tmp_path: Path, events: list[Event], how: str
) -> None:
    path, events = tmp_path / "metrics.jsonl", kept(events)
    path.write_text(lines(events[:20]))
    tail = Tail(path)
    assert len(list(tail.new_events())) == 20
    if how == "replaced":
        new = tmp_path / "new"
        new.write_text(lines(events[:30]))
        new.replace(path)
        left = 30
    else:
        path.write_text(lines(events[:5]))
        left = 5
    assert tail.is_replaced()
    assert len(list(tail.new_events())) == left
    assert not tail.is_replaced()


def test_a_replacement_in_the_middle_of_reading_ends_it(
    tmp_path: Path, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_BLOCK_BYTES", 1000)
    path, events = tmp_path / "metrics.jsonl", kept(events)
    path.write_text(lines(events))
    tail = Tail(path)
    reading = tail.new_events()
    next(reading)
    new = tmp_path / "new"
    new.write_text(lines(events[:3]))
    new.replace(path)
    assert len(list(reading)) < 10
    assert tail.is_replaced()
    assert len(list(tail.new_events())) == 3


def test_damage_is_passed_over(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        for junk in [b"", b"{", b"\xff\xfe", b"[]", b'{"event":"step"}', b'{"event":"new in version 9"}']:
            file.write(junk + b"\n" + lines(kept(events)[:2]).encode())
    assert len(list(recorded(path))) == 12


def long_run(steps: int, run_started: Started, step_done: Step) -> list[Event]:
    """Two sessions of a tenth of a second a step, every tenth one three times as long."""
    made: list[Event] = []
    at = START
    for step in range(1, steps + 1):
        if step in (1, steps // 2):
            at += 3600
            made.append(run_started(at, step=step - 1, steps=2 * steps))
        seconds = 0.3 if step % 10 == 0 else 0.1
        at += seconds + 0.02
        event = step_done(step, 2 + math.exp(-step / 1000), at, seconds)
        made.append(replace(event, progress=step / (2 * steps)))
        if step % 20 == 0:
            made.append(
                MachineSampled(
                    time=at,
                    cpu_percent=1.0,
                    process_cpu_percent=1.0,
                    cpu_mhz=None,
                    cpu_temperature=None,
                    process_bytes=step,
                    memory_used_bytes=1,
                    memory_total_bytes=2,
                )
            )
    return made


def test_a_part_of_a_long_record_tells_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: Started, step: Step
) -> None:
    monkeypatch.setattr(replay, "_KEPT_STEPS", 500)
    monkeypatch.setattr(replay, "_DENSE_BYTES", 100_000)
    path, events = tmp_path / "metrics.jsonl", long_run(20_000, started, step)
    path.write_text(lines(events))
    part = list(recorded(path))
    steps = [event for event in part if isinstance(event, StepDone)]
    assert 500 < len(steps) < 1500
    assert sum(isinstance(event, RunStarted) for event in part) == 2
    thin, whole = snapshot_of(part), snapshot_of(events)
    assert thin.step is not None
    assert whole.step is not None
    assert thin.step.step == whole.step.step == 20_000
    assert thin.machine is not None
    assert thin.machine.process_bytes == 20_000
    assert thin.session_step_seconds == pytest.approx(whole.session_step_seconds, rel=0.005)
    assert thin.seconds_left == pytest.approx(whole.seconds_left, rel=0.002)
    assert thin.pace.steps_per_second == pytest.approx(whole.pace.steps_per_second)
    assert thin.smoothed.value == pytest.approx(whole.smoothed.value, rel=1e-3)
    assert thin.losses.buckets[0].first == pytest.approx(1, abs=40)


def test_a_short_record_is_read_whole(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(kept(events)))
    assert kinds(list(recorded(path))) == kinds(kept(events))


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


def test_playing_ends_when_asked(events: list[Event]) -> None:
    heard: list[Event] = []
    began = time.monotonic()
    for event in Player(0.001).play(kept(events), lambda: time.monotonic() - began > 0.3):
        heard.append(event)
    assert time.monotonic() - began < 2
    assert 0 < len(heard) < 10
