"""The words for the end of a run."""

from __future__ import annotations

from typing import Any

import pytest

from cpulm.events import RunFinished, from_json, to_json
from cpulm.ui.words import end_lines


def finished(**changes: Any) -> RunFinished:
    values: dict[str, Any] = {
        "step": 700,
        "tokens": 1_430_000,
        "reason": "horizon",
        "elapsed_seconds": 250.0,
        "estimated_seconds": 200.0,
        "best_loss": None,
        "best_step": None,
        "best_bits_per_byte": None,
        "tokens_per_second": 11_000.0,
        "checkpoint": None,
        "time_over_estimate": 1.25,
        "flops_per_second": 172e9,
        "share_of_peak": 0.96,
    }
    return RunFinished(**{**values, **changes})


def test_the_end_says_time_and_speed_and_what_they_are_measured_against() -> None:
    how, speed = end_lines(finished())
    assert how == "finished after step 700: 4m 10s (steps 25% longer than the estimated 3m 20s)"
    assert speed == "1.43 M tokens at 11.0 K tok/s: 172 GFLOP/s, 96% of the machine's fp32 peak"
    assert max(map(len, (how, speed))) <= 80


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time_over_estimate": 0.9}, "4m 10s (steps 10% shorter than the estimated 3m 20s)"),
        ({"time_over_estimate": 1.001}, "4m 10s (steps as estimated: 3m 20s)"),
        ({"time_over_estimate": None}, "4m 10s (3m 20s estimated)"),
        ({"time_over_estimate": None, "estimated_seconds": None}, ": 4m 10s"),
    ],
)
def test_time_against_the_estimate(changes: dict[str, Any], words: str) -> None:
    assert end_lines(finished(**changes))[0].endswith(words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share_of_peak": 1.3}, "172 GFLOP/s, 1.3 times the machine's fp32 peak"),
        ({"share_of_peak": None}, "tok/s: 172 GFLOP/s"),
        ({"share_of_peak": None, "flops_per_second": None}, "1.43 M tokens at 11.0 K tok/s"),
    ],
)
def test_speed_against_the_peak(changes: dict[str, Any], words: str) -> None:
    assert end_lines(finished(**changes))[1].endswith(words)


def test_an_end_that_an_earlier_version_wrote_is_read_and_said() -> None:
    line = to_json(finished())
    for name in ("time_over_estimate", "flops_per_second", "share_of_peak"):
        line = line.replace(f'"{name}"', f'"not_{name}"')
    earlier = from_json(line)
    assert isinstance(earlier, RunFinished)
    assert end_lines(earlier)[1] == "1.43 M tokens at 11.0 K tok/s"
