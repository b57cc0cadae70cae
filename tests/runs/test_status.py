"""The status of a run, from its log and its lock: exact, fast, and robust to damage."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_events import START, run_validated, step_done
from small_events import run_finished as finished
from small_events import run_started as started

from cpulm.errors import DataError
from cpulm.events import EndReason, Event, Notice, SampleMade, StepDone, Validated, to_json
from cpulm.run_dir import RunDir
from cpulm.runlog import find_event
from cpulm.runs import status
from cpulm.runs.lock import locked
from cpulm.runs.status import find_runs, status_of
from cpulm.runs.stop_file import is_stop_requested


def step(number: int, horizon: int = 100, **changes: Any) -> StepDone:
    return step_done(number, **{"loss": 5 - number / 50, "progress": number / horizon, **changes})


def validated(number: int, loss: float, best: bool) -> Validated:
    return run_validated(number, loss, best=best)


def record(folder: Path, *events: Event) -> RunDir:
    """A run whose record is ``events``."""
    run = RunDir(folder)
    run.path.mkdir(exist_ok=True)
    run.settings.write_text("")
    run.metrics.write_text("".join(to_json(event) + "\n" for event in events), encoding="utf-8")
    return run


def test_all_that_is_known_of_a_run(tmp_path: Path) -> None:
    run = record(tmp_path / "tiny-1", started(), step(1), validated(1, 4.0, True), step(2))
    found = status_of(run)
    assert found == status.RunStatus(
        run=str(run.path),
        name="tiny-1",
        state="crashed",
        preset="tiny",
        params_total=3000,
        step=2,
        steps=100,
        progress=0.02,
        tokens=128,
        loss=4.96,
        best_loss=4.0,
        best_step=1,
        best_bits_per_byte=2.0,
        elapsed_seconds=2.0,
        began=START,
        seen=START + 2,
        disk_bytes=run.metrics.stat().st_size,
    )


def test_the_generation_is_that_of_the_newest_step(tmp_path: Path) -> None:
    begun = started(generations=3)
    found = status_of(record(tmp_path / "run", begun, step(1), step(2, generation=2)))
    assert (found.generation, found.generations) == (2, 3)


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("horizon", "finished"),
        ("target_loss", "finished"),
        ("patience", "finished"),
        ("stopped", "stopped"),
        ("diverged", "diverged"),
        ("no_room", "out of room"),
        ("failed", "failed"),
    ],
)
def test_the_final_event_is_the_state(tmp_path: Path, reason: EndReason, state: str) -> None:
    run = record(tmp_path, started(), step(1), validated(1, 4.0, True), finished(30, reason))
    found = status_of(run)
    assert (found.state, found.reason) == (state, reason)
    assert (found.step, found.best_loss, found.best_step, found.tokens_per_second) == (30, 1.5, 20, 64.0)


def test_states_without_a_final_event(tmp_path: Path) -> None:
    run = record(tmp_path)
    assert status_of(run).state == "new"
    run.metrics.unlink()
    assert status_of(run).state == "new"
    record(tmp_path, started())
    assert status_of(run).state == "crashed"
    with locked(run):
        found = status_of(run)
        assert found.state == "running"
        assert found.pid is not None
    record(tmp_path, started(), finished(5, "stopped"), started(step=5))
    assert status_of(run).state == "crashed"


def test_a_run_on_another_machine_is_running_while_its_log_grows(tmp_path: Path) -> None:
    run = record(tmp_path, started(), step(1))
    with locked(run):
        line = json.loads(run.lock.read_text())
    elsewhere = {**line, "host": "elsewhere", "boot": "another", "table": "another"}
    run.lock.write_text(json.dumps(elsewhere) + "\n")
    assert (status_of(run).state, status_of(run).host) == ("running", "elsewhere")
    run.lock.write_text(json.dumps({**elsewhere, "since": START}) + "\n")
    assert status_of(run).state == "crashed"
    record(tmp_path, started(), step(1, time=time.time() - 60))
    assert status_of(run).state == "running"


def test_the_best_may_lie_far_back(tmp_path: Path) -> None:
    steps = [step(number, 5000) for number in range(1, 5001)]
    later = [validated(number, 9.0, False) for number in range(30, 5000, 100)]
    run = record(tmp_path, started(steps=5000), validated(9, 3.0, True), *steps, *later)
    assert run.metrics.stat().st_size > 3 * find_event._BLOCK_BYTES
    assert (status_of(run).best_loss, status_of(run).best_step) == (3.0, 9)


def test_a_mark_across_the_border_of_two_blocks_is_found(tmp_path: Path) -> None:
    """Whatever the distance of the line from the end."""
    tail = "\n" * (find_event._BLOCK_BYTES - 40)
    run = record(tmp_path, started(), validated(9, 3.0, True))
    begin = run.metrics.read_text()
    for more in range(0, 90, 3):
        run.metrics.write_text(begin + tail + "\n" * more)
        assert status_of(run).best_loss == 3.0, more


def test_a_new_horizon_counts(tmp_path: Path) -> None:
    run = record(tmp_path, started(), step(50), started(step=50, steps=400), step(100, 400))
    assert (status_of(run).steps, status_of(run).progress) == (400, 0.25)
    timed = {"steps": None, "max_time_seconds": 200.0}
    run = record(tmp_path, started(), step(50), started(step=50, **timed), step(51, 200))
    assert (status_of(run).steps, status_of(run).max_time_seconds) == (None, 200.0)
    longer = {"steps": None, "max_time_seconds": 300.0}
    run = record(tmp_path, started(**timed), step(40, 190), started(step=40, **longer), step(60, 290))
    assert status_of(run).max_time_seconds == 300.0
    assert status_of(run).began == START


def test_texts_cannot_pass_for_events(tmp_path: Path) -> None:
    trap = to_json(finished(99, "diverged")) + to_json(validated(99, 0.1, True)) + to_json(step(99))
    run = record(
        tmp_path,
        started(),
        step(1),
        validated(1, 4.0, True),
        SampleMade(time=START + 1, step=1, prompt=trap, text=trap),
        Notice(time=START + 2, level="info", message=trap),
    )
    found = status_of(run)
    assert (found.state, found.step, found.best_loss, found.seen) == ("crashed", 1, 4.0, START + 2)


DAMAGE = [
    b"",
    b"\n",
    b"{",
    b"\x00" * 5000,
    b"\xff\xfe garbage \n\n[]\n7\n",
    b'{"event":"step"}\n{"event":"step","step":"x","progress":null}\n',
    b'{"event":"run_finished"}\n',
    b'{"event":"validated","best":true}\n',
    b'{"event":"run_finished","reason":"horizon","step":70',
    b'{"event":"step","step":70,"progress":0.7,"elapsed_seconds":70,"time":',
    b"[" * 100_000 + b"\n",
    b'{"event":"step","time":1,"step":' + b"[" * 100_000 + b"\n",
    b'{"event":"run_finished","time":1,"new":' + b'{"a":' * 100_000 + b"\n",
    b'{"event":"run_started","time":NaN}\n',
    b'{"event":"step","time":1,"step":' + b"9" * 5000 + b"}\n",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_at_the_end_hurts_nothing(tmp_path: Path, damage: bytes) -> None:
    run = record(tmp_path, started(), validated(1, 4.0, True), step(2))
    before = status_of(run)
    with run.metrics.open("ab") as file:
        file.write(damage)
    assert replace(status_of(run), disk_bytes=before.disk_bytes) == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_nothing_but_damage(tmp_path: Path, damage: bytes) -> None:
    run = record(tmp_path)
    run.metrics.write_bytes(damage)
    assert status_of(run).state in ("new", "crashed")


def test_a_million_lines_are_no_matter(tmp_path: Path) -> None:
    """The best lies at the very beginning: all of it is searched."""
    run = record(tmp_path, started(steps=10**6), validated(1, 3.0, True))
    line = to_json(step(5000, 10**6)) + "\n"
    with run.metrics.open("a") as file:
        for _ in range(20):
            file.write(line * 10_000)
    began = time.process_time()
    found = status_of(run)
    assert time.process_time() - began < 0.5  # 45 MB; about 20 ms on an idle machine
    assert (found.best_loss, found.step) == (3.0, 5000)


def test_runs_are_found_one_level_deep_and_by_themselves(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    one, two = record(runs / "one", started()), record(runs / "two")
    (runs / "empty").mkdir()
    (runs / "file").write_text("")
    record(runs / "empty" / "too-deep")
    assert [run.path for run in find_runs([runs])] == [one.path, two.path]
    assert [run.path for run in find_runs([one.path, runs])] == [one.path, two.path]
    assert find_runs([runs / "empty" / "too-deep" / ".."]) != []
    assert find_runs([]) == []
    with pytest.raises(DataError, match="nowhere is not a folder"):
        find_runs([tmp_path / "nowhere"])


RUN_FILES = ("lock", "stop", "settings.yaml", "metrics.jsonl", "latest.pt", "overnight.json")


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "nested", "zeros", "bytes"])
def test_one_odd_run_does_not_hide_the_others(tmp_path: Path, name: str, kind: str) -> None:
    for run in ("odd", "whole"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "settings.yaml").write_text("{}")
        (tmp_path / run / "metrics.jsonl").write_text(to_json(started()) + "\n" + to_json(step(3)) + "\n")
    odd = tmp_path / "odd" / name
    odd.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    elif kind == "link":
        odd.symlink_to(odd.name)
    elif kind == "zeros":
        with odd.open("wb") as file:
            file.truncate(1 << 22)
    else:
        odd.write_bytes(b"[" * 100_000 if kind == "nested" else b"\xff\xfe\x00{")
    states = {status_of(run).name: status_of(run) for run in find_runs([tmp_path])}
    assert (states["whole"].state, states["whole"].step) == ("crashed", 3)
    assert states["odd"].state in ("crashed", "new")
    assert not is_stop_requested(RunDir(tmp_path / "whole"))
    assert is_stop_requested(RunDir(tmp_path / "odd")) == (
        name == "stop" and kind in ("zeros", "nested", "bytes")
    )
