"""Finds single events in a run log from either end, with any lines between."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_events import checkpoint_saved, run_finished, run_started, step_done

from cpulm.events import (
    CheckpointSaved,
    Event,
    Notice,
    RunFinished,
    RunStarted,
    SampleMade,
    StepDone,
    to_json,
)
from cpulm.runlog import find_event
from cpulm.runlog.find_event import first_event, last_event, run_end
from cpulm.runlog.run_log import read_run_log
from cpulm.runlog.tail import read_events


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """Three thousand steps with notices of different lengths, and one checkpoint among them."""
    lines = [to_json(Notice(time=0.0, level="info", message="hello")), to_json(run_started())]
    for step in range(1, 3001):
        lines.append(to_json(step_done(step)))
        lines.append(to_json(Notice(time=float(step), level="info", message="x" * (step % 997))))
        if step == 1500:
            lines.append(to_json(checkpoint_saved(step)))
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines) + '\n{"event":"step","time":99')
    return path


@pytest.mark.parametrize("block_bytes", [100, 1009, 2**16, 2**24])
def test_events_are_found_from_both_ends(
    metrics: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_event, "_BLOCK_BYTES", block_bytes)
    last, saved = last_event(metrics, StepDone), last_event(metrics, StepDone, CheckpointSaved)
    assert last is not None
    assert last.step == 3000
    assert saved == last
    early = last_event(metrics, StepDone, where=lambda step: step.step < 1000)
    assert early is not None
    assert early.step == 999
    found = last_event(metrics, CheckpointSaved)
    assert found is not None
    assert found.step == 1500
    any_event = last_event(metrics, Event)
    assert isinstance(any_event, Notice)
    assert any_event.time == 3000
    assert isinstance(first_event(metrics, RunStarted), RunStarted)
    assert last_event(metrics, SampleMade) is None
    assert first_event(metrics, SampleMade) is None


def test_a_log_that_is_not_there_or_empty_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert (last_event(path, Event), first_event(path, StepDone), run_end(path)) == (None, None, None)
    path.touch()
    assert (last_event(path, Event), first_event(path, StepDone), run_end(path)) == (None, None, None)


def test_a_run_has_ended_unless_it_has_trained_since(tmp_path: Path) -> None:
    path, events = tmp_path / "metrics.jsonl", list[Event]()
    for event, ended in (
        (run_started(), False),
        (step_done(1), False),
        (run_finished(1, "stopped"), True),
        (SampleMade(time=1.0, step=1, prompt="", text='{"event":"step",'), True),
        (run_started(step=1), False),
        (run_finished(1, "horizon"), True),
        (step_done(2), False),
    ):
        events.append(event)
        path.write_text("".join(to_json(one) + "\n" for one in events))
        assert isinstance(run_end(path), RunFinished) == ended, event


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"event":"step","time":1,"step":' + b"[" * 100_000,
        b'{"event":"step","time":1,"new":' + b'{"a":' * 100_000,
        b'{"event":"step","time":1,"step":' + b"9" * 10_000,
        b'{"event":"step","time":1e400,"step":1}',
        b'{"event":"ste' + to_json(step_done(9)).encode(),
        b"\0" * 100_000,
    ],
)
def test_a_hostile_line_is_passed_over(metrics: Path, line: bytes) -> None:
    content = metrics.read_bytes()
    metrics.write_bytes(line + b"\n" + content + b"\n" + line + b"\n" + line)
    last = last_event(metrics, StepDone)
    assert last is not None
    assert last.step == 3000
    assert first_event(metrics, RunStarted) is not None


def test_the_paths_of_a_run_that_was_copied_are_those_of_the_copy(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    metrics = copy / "metrics.jsonl"
    written = [
        run_started(run="runs/old", name="old"),
        checkpoint_saved(3, path="runs\\old\\step-00000003.pt"),
        checkpoint_saved(5, path="/runs/old/latest.pt"),
        run_finished(5, "horizon", checkpoint="runs/old/best.pt"),
    ]
    metrics.write_text("".join(to_json(event) + "\n" for event in written))
    for events in (list(read_events(metrics)), [one.event for one in read_run_log(metrics).events]):
        assert events == [
            run_started(run=str(copy), name="copy"),
            checkpoint_saved(3, path=str(copy / "step-00000003.pt")),
            checkpoint_saved(5, path=str(copy / "latest.pt")),
            run_finished(5, "horizon", checkpoint=str(copy / "best.pt")),
        ]
    assert first_event(metrics, RunStarted) == run_started(run=str(copy), name="copy")
    end = run_end(metrics)
    assert end is not None
    assert end.checkpoint == str(copy / "best.pt")
