"""Ctrl-C is answered at once; the second one says what it loses, and the run is aborted, not failed."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from small_runs import of, record, settings_for, train, watching

from cpulm.errors import AbortedError
from cpulm.events import Event, Notice, RunFinished
from cpulm.run_dir import RunDir
from cpulm.runs.status import status_of
from cpulm.training import run as runs


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    return path


def test_the_first_one_is_answered_while_the_update_still_runs(text: Path, tmp_path: Path) -> None:
    seen: list[Event] = []
    answered = threading.Event()

    def interrupt(step: int) -> None:
        if step == 4:
            signal.raise_signal(signal.SIGINT)
            assert answered.wait(20)  # another thread answers; this one is in the middle of its update

    show = watching(interrupt, seen)

    def hear(event: Event) -> None:
        show(event)
        if isinstance(event, Notice) and event.message.startswith("stopping:"):
            answered.set()

    outcome = runs.train(settings_for(text), tmp_path / "run", show=hear, record=record)
    assert outcome.reason == "stopped"
    (answer,) = [event.message for event in of(Notice, seen) if event.message.startswith("stopping:")]
    assert answer.endswith("; Ctrl-C again loses 4 steps after the checkpoint of step 0")


def test_the_second_one_says_what_is_lost_and_the_run_is_aborted(text: Path, tmp_path: Path) -> None:
    seen: list[Event] = []

    def interrupt(step: int) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(AbortedError, match="3 steps after the checkpoint of step 0 are lost"):
        runs.train(settings_for(text), tmp_path / "run", show=watching(interrupt, seen), record=record)
    assert of(RunFinished, seen)[-1].reason == "aborted"
    assert status_of(RunDir(tmp_path / "run")).state == "aborted"
    events, outcome = train(settings_for(text), tmp_path / "other", stop_at=3)
    assert outcome.reason == of(RunFinished, events)[-1].reason == "stopped"
