"""Follows the log of a trial while it grows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cpulm.events import EndReason, Event, RunFinished, StepDone, Validated, to_json
from cpulm.run_dir import RunDir
from cpulm.sweep.trial_status import TrialLog


def a_step(step: int) -> StepDone:
    return StepDone(
        step=step,
        loss=2.0,
        lr=0.1,
        grad_norm=1.0,
        tokens=10 * step,
        epoch=0.0,
        elapsed_seconds=step / 2,
        step_seconds=0.5,
        data_seconds=0.0,
        progress=0.1,
    )


def a_validation(step: int, bits: float) -> Validated:
    return Validated(
        step=step,
        loss=bits / 2,
        perplexity=1.0,
        bits_per_byte=bits,
        tokens=5,
        seconds=0.1,
        whole=True,
        best=False,
    )


def the_end(step: int, reason: EndReason) -> RunFinished:
    return RunFinished(
        step=step,
        tokens=10 * step,
        reason=reason,
        elapsed_seconds=step / 2,
        estimated_seconds=None,
        best_loss=None,
        best_step=None,
        best_bits_per_byte=None,
        tokens_per_second=1.0,
        checkpoint=None,
    )


def write(run: RunDir, *events: Event, end: str = "\n") -> None:
    with run.metrics.open("a", newline="") as file:
        file.write("\n".join(to_json(event) for event in events) + end)


def test_what_is_written_is_followed_line_by_line(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    progress = TrialLog(run)
    progress.follow()  # there is nothing yet
    assert progress.best_until(None) == math.inf
    write(run, a_step(1), a_validation(1, 5.0), a_step(2))
    progress.follow()
    assert (progress.step, progress.tokens, progress.elapsed_seconds) == (2, 20, 1.0)
    assert progress.has_reached(1)
    assert not progress.has_reached(2)
    write(run, a_validation(2, 4.0), end="")  # half a line as far as anybody can tell
    progress.follow()
    assert not progress.has_reached(2)
    write(run, end="\n")
    progress.follow()
    assert progress.has_reached(2)
    assert progress.scores == {1: 5.0, 2: 4.0}


def test_at_a_rung_only_what_was_known_there_counts(tmp_path: Path) -> None:
    run, progress = RunDir(tmp_path), TrialLog(RunDir(tmp_path))
    write(
        run, a_validation(10, 3.0), a_validation(20, 2.0), a_validation(30, math.nan), a_validation(40, 1.0)
    )
    progress.follow()
    assert [progress.best_until(step) for step in (9, 10, 30, None)] == [math.inf, 3.0, 2.0, 1.0]


def test_a_record_that_a_resumed_run_has_cut_is_read_anew(tmp_path: Path) -> None:
    run, progress = RunDir(tmp_path), TrialLog(RunDir(tmp_path))
    write(run, a_step(1), a_validation(1, 5.0), a_step(9), a_validation(9, 4.0), the_end(9, "stopped"))
    progress.follow()
    assert progress.reason == "stopped"
    run.metrics.write_text(to_json(a_step(1)) + "\n" + to_json(a_validation(1, 5.0)) + "\n")
    progress.follow()
    now: tuple[Any, ...] = (progress.step, progress.scores, progress.reason)
    assert now == (1, {1: 5.0}, None)


def test_only_the_final_event_is_the_end(tmp_path: Path) -> None:
    run, progress = RunDir(tmp_path), TrialLog(RunDir(tmp_path))
    write(run, a_step(5), the_end(5, "horizon"))
    progress.follow()
    assert progress.has_ended()
    assert progress.has_reached(100)  # there is nothing more to come
    write(run, a_step(6))
    progress.follow()
    assert not progress.has_ended()
    write(run, the_end(6, "diverged"))
    progress.follow()
    assert progress.has_diverged()
    assert not progress.has_ended()
    assert not progress.has_reached(7)
