"""Follows a run log: reads only new lines, however the file changes; downsampling keeps the curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cpulm.events import Event, MachineSampled, RunStarted, StepDone, to_json
from cpulm.runlog import tail as tails
from cpulm.runlog.tail import Tail, read_events
from cpulm.ui.replay import snapshot_of

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
    monkeypatch.setattr(tails, "_BLOCK_BYTES", 1000)
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
    assert len(list(read_events(path))) == 12


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
    monkeypatch.setattr(tails, "_KEPT_STEPS", 500)
    monkeypatch.setattr(tails, "_DENSE_BYTES", 100_000)
    path, events = tmp_path / "metrics.jsonl", long_run(20_000, started, step)
    path.write_text(lines(events))
    part = list(read_events(path))
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
    assert kinds(list(read_events(path))) == kinds(kept(events))
