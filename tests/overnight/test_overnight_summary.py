"""The summary of a night, from complete and damaged logs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from small_events import run_started, run_validated

from cpulm.events import (
    EndReason,
    Event,
    MachineSampled,
    Notice,
    RolledBack,
    RunFinished,
    RunStarted,
    SampleMade,
    StepDone,
    Validated,
    to_json,
)
from cpulm.exit_codes import exit_in_words
from cpulm.overnight.summary import summary, write_summary
from cpulm.overnight.summary_record import read_night_log
from cpulm.run_dir import RunDir
from cpulm.runlog import tail
from cpulm.runs import supervisor_state
from cpulm.runs.supervisor_state import Attempt, NightState

EVENING = time.mktime((2026, 11, 21, 23, 0, 0, 0, 0, -1))


def at(seconds: float) -> float:
    return EVENING + seconds


def started(when: float, steps: int | None = 1000) -> RunStarted:
    return run_started(
        time=at(when),
        run="runs/x-1",
        name="x-1",
        preset="x",
        steps=steps,
        max_time_seconds=None if steps else 8 * 3600,
        device_name="a processor",
        tokens_per_step=500,
    )


def step(number: int, when: float, elapsed: float, progress: float = 0.5) -> StepDone:
    return StepDone(
        time=at(when),
        step=number,
        loss=2.0,
        lr=1e-3,
        grad_norm=1.0,
        tokens=number * 500,
        epoch=0.1,
        elapsed_seconds=elapsed,
        step_seconds=1.0,
        data_seconds=0.0,
        progress=progress,
    )


def validated(number: int, when: float, loss: float) -> Validated:
    return run_validated(number, loss, time=at(when))


def finished(number: int, when: float, reason: EndReason = "horizon") -> RunFinished:
    return RunFinished(
        time=at(when),
        step=number,
        tokens=number * 500,
        reason=reason,
        elapsed_seconds=1.0,
        estimated_seconds=None,
        best_loss=1.0,
        best_step=number,
        best_bits_per_byte=0.5,
        tokens_per_second=1.0,
        checkpoint=None,
    )


def warning(when: float, message: str) -> Notice:
    return Notice(time=at(when), level="warning", message=message)


NIGHT: list[Event] = [
    Notice(time=at(8), level="info", message="this run will need 8h"),
    started(10),
    MachineSampled(
        time=at(11),
        cpu_percent=1.0,
        process_cpu_percent=1.0,
        cpu_mhz=None,
        cpu_temperature=None,
        process_bytes=1,
        memory_used_bytes=1,
        memory_total_bytes=1,
    ),
    step(1, 12, 1.0),
    validated(400, 3600, 1.25),
    SampleMade(time=at(3601), step=400, prompt="Once", text=" upon\na \x1b[31mtime"),
    warning(4000, "memory is 90% full"),
    warning(5000, "memory is 90% full"),
    Notice(time=at(9000), level="info", message="the computer slept for 2h 00m"),
    validated(900, 20000, 1.5),
    step(1000, 25000, 21600.0, 1.0),
    finished(1000, 25010),
]
PARTS = [
    Attempt(began=at(0), from_step=None, ended=at(10000), code=-9, step=450, pause_seconds=5.0),
    Attempt(
        began=at(10005), from_step=440, ended=at(12000), code=5, step=460, error="no room", pause_seconds=135
    ),
    Attempt(began=at(12135), from_step=440, ended=at(25200), code=0, step=1000),
]


def make(
    folder: Path, events: list[Event], parts: list[Attempt] | None, state: NightState = "finished"
) -> RunDir:
    run = RunDir(folder / "runs" / "x-1")
    run.path.mkdir(parents=True)
    run.metrics.write_text("".join(to_json(event) + "\n" for event in events), encoding="utf-8")
    if parts is not None:
        night = supervisor_state.new_state(run, [])
        night.since, night.state, night.attempts = parts[0].began, state, parts
        supervisor_state.write(run, night)
    return run


def test_the_page_tells_how_long_how_far_how_good_and_what_happened(tmp_path: Path) -> None:
    run = make(tmp_path, NIGHT, PARTS)
    run.best.write_bytes(b"")
    page = write_summary(run)
    assert (run.path / "summary.md").read_text(encoding="utf-8") == page
    assert "The run finished." in page
    assert "7h 00m, from Sat 21 Nov 23:00 to Sun 22 Nov 06:00: 6h 00m trained" in page
    assert "1h 00m for preparation, 2 restarts and pauses" in page
    assert "step 1,000 of 1,000 (100%), 500 K tokens" in page
    assert "1.2500 (0.6250 bits per byte) at step 400, Sun 22 Nov 00:00" in page
    assert f"cpulm generate {run.best}" in page
    assert f"cpulm resume {run.path} --steps 2000" in page
    assert "cpulm watch" not in page
    happened = page.partition("## What happened\n\n")[2].partition("\n\n")[0].splitlines()
    assert [line.partition("  ")[2] for line in happened] == [
        "started",
        "memory is 90% full (2 times, the last at Sun 22 Nov 00:23)",
        "the computer slept for 2h 00m",
        "killed by SIGKILL (often by the system, when memory runs out) at step 450",
        "started again from step 440, after 5.0s; 10 steps to train again",
        "no room on the disk or in memory (exit code 5) at step 460: no room",
        "started again from step 440, after 2m 15s; 20 steps to train again",
        "finished (exit code 0) at step 1,000",
    ]


def test_what_a_model_wrote_stays_text(tmp_path: Path) -> None:
    page = summary(make(tmp_path, NIGHT, PARTS))
    assert "## Sample at step 400\n\n    Once upon\n    a  [31mtime\n" in page
    assert "\x1b" not in page


def test_a_run_that_overfitted_is_not_to_be_trained_further(tmp_path: Path) -> None:
    losses = (5.0, 4.6, 4.5, 4.7, 5.0, 5.4)
    rising = [validated(100 * number, 3600.0 * number, loss) for number, loss in enumerate(losses, 1)]
    parts = [started(10), *rising, step(1000, 25000, 21600.0, 1.0), finished(1000, 25010)]
    run = make(tmp_path, parts, PARTS)
    run.best.write_bytes(b"")
    page = summary(run)
    assert f"cpulm generate {run.best}" in page
    assert "cpulm resume" not in page


def test_a_run_without_a_supervisor_has_a_page_too(tmp_path: Path) -> None:
    page = summary(make(tmp_path, NIGHT, None))
    assert "The run finished." in page
    assert "6h 00m trained" in page
    assert "--overnight" not in page


def test_damaged_lines_cost_what_stood_in_them(tmp_path: Path) -> None:
    run = make(tmp_path, NIGHT, PARTS)
    whole = summary(run)
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    junk = [
        b"\0" * 500 + b"\n",
        b'{"event":"validated","time":5,"loss":"low"}\n',
        b'{"event":"validated","time":5,"step":3}\n',
        b'{"event":"rolled_back","time":5,"to_step":"x"}\n',
        b'{"event":"run_started"}\n',
        b'["event"]\n',
        b"17\n",
        b'{"event":"step","time":"never"}\n',
        b'{"event":"step","ti',
    ]
    run.metrics.write_bytes(
        junk[0] + lines[0] + b"".join(junk[1:3]) + b"".join(lines[1:]) + b"".join(junk[3:])
    )
    assert summary(run) == whole


def test_nothing_to_read_is_still_a_page(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "nothing")
    assert "no step trained yet" in summary(run)
    run.path.mkdir()
    run.overnight.write_text("[]")
    run.metrics.write_bytes(b"\xff\xfe")
    assert "no step trained yet" in summary(run)


def test_steps_that_were_rolled_back_do_not_count(tmp_path: Path) -> None:
    back = RolledBack(
        time=at(21000),
        step=950,
        to_step=600,
        reason="the loss jumped",
        skipped_batches=(7,),
        count=1,
        limit=3,
    )
    events = [*NIGHT[:-3], validated(900, 20000, 1.0), step(950, 20500, 9000.0), back]
    run = make(tmp_path, events, PARTS[:1], state="waiting")
    page = summary(run)
    assert "rolled back from step 950 to step 600: the loss jumped" in page
    assert "step 600 of 1,000 (60%)" in page
    assert "1.2500 (0.6250 bits per byte) at step 400" in page


def test_the_summary_of_many_crashes_fits_on_one_page(tmp_path: Path) -> None:
    parts = [
        Attempt(began=at(60 * n), from_step=n, ended=at(60 * n + 50), code=-9, step=n, pause_seconds=5.0)
        for n in range(500)
    ]
    page = summary(make(tmp_path, NIGHT, parts, state="given_up"))
    assert len(page.splitlines()) < 60
    assert "more lines, see overnight.log" in page
    assert "499 restarts" in page


def test_a_horizon_in_time_is_told_as_such(tmp_path: Path) -> None:
    events: list[Event] = [started(10, steps=None), step(1, 12, 1.0), step(70, 5000, 5000.0, progress=0.25)]
    page = summary(make(tmp_path, events, PARTS[:1], state="interrupted"))
    assert "step 70, 25% of the given time, 35.0 K tokens" in page
    assert "cpulm resume" in page


def test_only_the_nights_own_part_counts_as_trained(tmp_path: Path) -> None:
    day: list[Event] = [
        started(-90000),
        step(1, -80000, 1.0),
        warning(-80000, "yesterday's"),
        step(9, -70000, 9000.0),
    ]
    events = [*day, started(10), step(10, 20, 9001.0), step(11, 3600, 12000.0)]
    run = make(
        tmp_path, events, [Attempt(began=at(0), from_step=9, ended=at(3600), code=75, step=11)], "stopped"
    )
    page = summary(run)
    assert "1h 00m, from Sat 21 Nov 23:00 to Sun 22 Nov 00:00: 50m 00s trained" in page
    assert "yesterday's" not in page
    assert "started from step 9" in page


def test_of_a_long_log_most_steps_are_left_out_and_their_time_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "_KEPT_STEPS", 100)
    monkeypatch.setattr(tail, "_DENSE_BYTES", 20_000)
    steps = [step(number, number, float(number)) for number in range(1, 5001)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(to_json(event) + "\n" for event in [started(0.0), *steps]))
    night = read_night_log(path, at(-10))
    assert night.first_step is not None
    assert night.step is not None
    assert night.first_step.step > 1
    assert night.step.step == 5000
    trained = night.step.elapsed_seconds - night.first_step.elapsed_seconds + night.first_step.step_seconds
    assert trained == 5000.0


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "finished (exit code 0)"),
        (4, "training diverged (exit code 4)"),
        (77, "exit code 77"),
        (-9, "killed by SIGKILL (often by the system, when memory runs out)"),
        (137, "killed by SIGKILL (often by the system, when memory runs out)"),
        (-11, "killed by SIGSEGV (a crash inside a library)"),
        (130, "aborted (exit code 130)"),
        (0xC0000005, "crashed with status 0xC0000005"),
        (None, "ended together with the computer or the supervisor"),
    ],
)
def test_how_a_process_ended_in_words(code: int | None, words: str) -> None:
    assert exit_in_words(code) == words
