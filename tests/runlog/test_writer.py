"""The writer of the run log: complete, appending, and never the reason why a run stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cpulm.events import Event, Progress, StepDone, from_json, to_json
from cpulm.runlog.writer import MetricsWriter


def read(path: Path) -> list[Event]:
    return [from_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def steps_in(path: Path) -> list[int]:
    return [event.step for event in read(path) if isinstance(event, StepDone)]


def test_every_event_but_progress_is_written_in_order(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, pytest.fail) as writer:
        for event in events:
            writer(event)
    kept = [to_json(event) for event in events if not isinstance(event, Progress)]
    assert path.read_text(encoding="utf-8").split("\n")[:-1] == kept


def test_what_stands_in_the_file_stays(tmp_path: Path, step: Callable[..., StepDone]) -> None:
    path = tmp_path / "metrics.jsonl"
    for number in (1, 2):
        with MetricsWriter(path, pytest.fail) as writer:
            writer(step(number, 2.0))
    assert steps_in(path) == [1, 2]


def test_a_validation_puts_everything_so_far_into_the_file(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / "metrics.jsonl"
    upto = next(at for at, event in enumerate(events) if event.kind == "validated") + 1
    with MetricsWriter(path, pytest.fail) as writer:
        for event in events[:upto]:
            writer(event)
        assert len(read(path)) == sum(not isinstance(event, Progress) for event in events[:upto])


def test_a_line_waits_for_no_further_event(tmp_path: Path, step: Callable[..., StepDone]) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, pytest.fail) as writer:
        writer(step(1, 2.0))
        for _ in range(100):
            if path.exists() and steps_in(path) == [1]:
                break
            writer._closing.wait(0.1)
        assert steps_in(path) == [1]


def test_text_that_is_no_valid_unicode_comes_back(tmp_path: Path, events: list[Event]) -> None:
    from cpulm.events import SampleMade

    path = tmp_path / "metrics.jsonl"
    sample = SampleMade(step=1, prompt="", text="lone \udc80 half, line\u2028end")
    with MetricsWriter(path, pytest.fail) as writer:
        writer(sample)
    (back,) = read(path)
    assert isinstance(back, SampleMade)
    assert back.text == sample.text


def test_a_disk_that_takes_nothing_is_told_once_and_tried_again(
    tmp_path: Path, step: Callable[..., StepDone]
) -> None:
    path = tmp_path / "not there yet" / "metrics.jsonl"
    problems: list[str] = []
    with MetricsWriter(path, problems.append) as writer:
        for number in range(1, 4):
            writer(step(number, 2.0))
            writer.flush()
        assert len(problems) == 1
        assert str(path) in problems[0]
        path.parent.mkdir()
        writer(step(4, 2.0))
    assert steps_in(path) == [1, 2, 3, 4]
    assert len(problems) == 1


def test_a_file_that_cannot_be_written_does_not_raise(step: Callable[..., StepDone], tmp_path: Path) -> None:
    thesis, path, problems = tmp_path / "thesis", tmp_path / "metrics.jsonl", list[str]()
    thesis.write_text("mine")
    path.symlink_to(thesis)
    with MetricsWriter(path, problems.append) as writer:
        writer(step(1, 2.0))
        writer.flush()
        writer.flush()
    assert len(problems) == 1
    assert "it is a link to another file" in problems[0]
    assert thesis.read_text() == "mine"
