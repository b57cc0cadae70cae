"""Truncates a run log at a checkpoint: a resumed run continues it without gaps or duplicates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cpulm.events import Event, Progress, StepDone, from_json, to_json
from cpulm.runlog.truncate import truncate_after
from cpulm.runlog.writer import MetricsWriter


def read(path: Path) -> list[Event]:
    return [from_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def steps_in(path: Path) -> list[int]:
    return [event.step for event in read(path) if isinstance(event, StepDone)]


def test_truncating_keeps_what_happened_up_to_the_step(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, pytest.fail) as writer:
        for event in events:
            writer(event)
    truncate_after(path, 40)
    assert steps_in(path) == list(range(1, 41))
    later = next(at for at, event in enumerate(events) if getattr(event, "step", 0) > 40)
    kept = [to_json(event) for event in events[:later] if not isinstance(event, Progress)]
    assert [to_json(event) for event in read(path)] == kept


def test_truncating_drops_the_end_of_a_run_and_damaged_lines(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [to_json(event) for event in events if not isinstance(event, Progress)]
    path.write_text("\n".join([lines[0], '{"event":"st', *lines[1:], '{"event":"step","step":101,"lo']))
    truncate_after(path, 100)
    assert [to_json(event) for event in read(path)] == lines[:-1]


def test_a_record_joins_without_gap_or_doubling_after_truncating(
    tmp_path: Path, step: Callable[..., StepDone]
) -> None:
    path = tmp_path / "metrics.jsonl"
    for first, last in ((1, 30), (21, 50)):
        truncate_after(path, first - 1)
        with MetricsWriter(path, pytest.fail) as writer:
            for number in range(first, last + 1):
                writer(step(number, 2.0))
    assert steps_in(path) == list(range(1, 51))


def test_truncating_keeps_events_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"event": "from the future", "step": 3}) + "\n")
    truncate_after(path, 3)
    assert "from the future" in path.read_text()


def test_truncating_nothing_makes_no_file(tmp_path: Path) -> None:
    truncate_after(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_only_json_can_read_is_kept_and_a_hostile_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = b'{"event":"sample","time":1,"step":3,"prompt":"","text":"half \\udc80 a pair"}\n'
    path.write_bytes(
        kept + b'{"event":"sample","step":3,"text":' + b"[" * 100_000 + b"\n" + b"[" * 100_000 + b"\n"
    )
    truncate_after(path, 3)
    assert path.read_bytes() == kept
