"""The figures at the end of a run: speed relative to the machine's peak, time relative to the estimate."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import of, settings_for, train

from cpulm.events import RunFinished, RunStarted, StepDone


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    return path


def test_the_figures_of_the_end_follow_from_those_of_the_run(text: Path, tmp_path: Path) -> None:
    events, _ = train(settings_for(text), tmp_path / "run")
    started, end, steps = of(RunStarted, events)[0], of(RunFinished, events)[0], of(StepDone, events)
    seconds = sum(step.step_seconds for step in steps)
    assert end.tokens_per_second == pytest.approx(steps[-1].tokens / seconds)
    assert end.flops_per_second == pytest.approx(started.flops_per_token * end.tokens_per_second)
    assert end.share_of_peak == pytest.approx(end.flops_per_second / started.peak_flops_per_second)
    assert end.time_over_estimate == pytest.approx(seconds / end.estimated_seconds)
    assert seconds < end.elapsed_seconds  # which has the validations too


def test_a_run_that_ends_early_is_not_compared_with_the_estimate(text: Path, tmp_path: Path) -> None:
    events, _ = train(settings_for(text), tmp_path / "run", stop_at=4)
    end = of(RunFinished, events)[0]
    assert end.reason == "stopped"
    assert end.estimated_seconds is not None
    assert end.time_over_estimate is None
    assert end.share_of_peak > 0
