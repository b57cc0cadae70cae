"""The words for the end of a run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from recorded_runs import validated
from small_events import run_started

from cpulm.errors import SettingsError
from cpulm.events import RunFinished, from_json, to_json
from cpulm.settings.resolve_settings import known_keys, resolve
from cpulm.ui.words import DURATIONS, describe_average, describe_run, end_lines, typed_value


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
    assert how == "finished after step 700: 4m 10s; steps alone 25% over their estimate of 3m 20s"
    assert speed == "1.43 M tokens at 11.0 K tok/s: 172 GFLOP/s, 96% of the machine's fp32 peak"
    assert max(map(len, (how, speed))) <= 80


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time_over_estimate": 0.9}, "4m 10s; steps alone 10% under their estimate of 3m 20s"),
        ({"time_over_estimate": 2.34}, "4m 10s; steps alone 2.3 times their estimate of 3m 20s"),
        ({"time_over_estimate": 1.001}, "4m 10s; steps alone took the 3m 20s estimated"),
        ({"time_over_estimate": None}, "4m 10s of training in 3m 20s with preparation"),
        ({"time_over_estimate": None, "reason": "stopped"}, " after step 700: 4m 10s of 3m 20s"),
        ({"time_over_estimate": None, "estimated_seconds": None}, ": 4m 10s"),
        ({"time_over_estimate": 3.9, "estimated_seconds": 0.02}, ": 4m 10s"),
    ],
)
def test_time_against_the_estimate(changes: dict[str, Any], words: str) -> None:
    assert end_lines(finished(**changes))[0].endswith(words)


@pytest.mark.parametrize(
    ("ratio", "others", "told"),
    [(10.0, 0.62, True), (1.25, 0.06, True), (1.25, 0.01, False), (0.9, 0.5, False), (1.25, None, False)],
)
def test_a_run_slower_than_estimated_says_why(ratio: float, others: float | None, told: bool) -> None:
    lines = end_lines(finished(time_over_estimate=ratio, others_cpu=others))
    assert (f"slower: other programs took {others or 0:.0%} of the processor" in lines) is told


def test_the_best_loss_has_its_perplexity() -> None:
    best = {"best_step": 40, "best_loss": math.log(16), "best_bits_per_byte": 2.5}
    assert end_lines(finished(**best))[-1].endswith("2.5000 bits per byte, perplexity 16.00")
    assert "perplexity" not in end_lines(finished(**{**best, "best_loss": math.inf}))[-1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share_of_peak": 1.3}, "172 GFLOP/s, 1.3 times the machine's fp32 peak"),
        ({"share_of_peak": None}, "tok/s: 172 GFLOP/s"),
        ({"share_of_peak": None, "flops_per_second": None}, "1.43 M tokens at 11.0 K tok/s"),
        ({"tokens_per_second": 0.0}, "1.43 M tokens"),
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


def test_settings_in_seconds_are_shown_as_people_type_them() -> None:
    """In every table and on every page, which all ask for them here."""
    assert typed_value("train.max_time", 28800.0) == "8h"
    assert typed_value("train.lr", 28800.0) == 28800.0
    assert typed_value("train.max_time", None) is None

    def takes_durations(key: str) -> bool:
        section, _, name = key.partition(".")
        try:
            seconds: object = getattr(getattr(resolve(assignments=[f"{key}=1h30m"]), section), name)
        except SettingsError:
            return False
        return seconds == 5400.0

    assert {key for key in known_keys() if takes_durations(key)} == set(DURATIONS)


@pytest.mark.parametrize(
    ("trained", "averaged", "words"),
    [
        (2.5, 2.25, " of the averaged weights (trained weights: 2.5000)"),
        (2.25, 2.5, " of the trained weights (averaged weights: 2.5000)"),
        (2.25, 2.25, " of the trained weights (averaged weights: 2.2500)"),
        (None, None, ""),
    ],
)
def test_a_validation_says_which_weights_it_measured(
    trained: float | None, averaged: float | None, words: str
) -> None:
    event = replace(validated(40, 0.0, 2.25), trained_loss=trained, averaged_loss=averaged)
    assert describe_average(event) == words


def test_the_threads_are_those_of_each_process() -> None:
    assert describe_run(run_started()) == "cpu Xeon, fp32, eager, 2 threads"
    assert describe_run(run_started(processes=3)) == "cpu Xeon, fp32, eager, 3 processes of 2 threads"
