"""The data in a page: downsampled without losing peaks, smoothed, and small enough for an e-mail."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from cpulm.analysis.report import Curve, Floats, Report, Sample, TimelineEntry
from cpulm.ui.page import payload
from cpulm.ui.page.charts import CHARTS
from cpulm.ui.page.page import page

MAIL_BYTES = 5_000_000


def curve_of(values: Floats) -> Curve:
    steps = np.arange(1, len(values) + 1, dtype=np.int64)
    return Curve(steps, steps * 4096, (steps * 0.25).astype(np.float64), values)


@pytest.mark.parametrize("most", [50, 51, 400])
def test_thinning_keeps_both_ends_every_peak_and_every_trough(most: int) -> None:
    values = np.sin(np.arange(10_000) / 900.0)
    values[1234], values[7777] = 40.0, -40.0
    kept = payload.extremes(values, most)
    assert len(kept) <= most
    assert {0, 1234, 7777, 9999} <= set(kept.tolist())
    assert kept.tolist() == sorted(set(kept.tolist()))


def test_a_short_curve_stays_whole() -> None:
    assert payload.extremes(np.arange(7.0), 50).tolist() == list(range(7))


def test_a_smoothed_line_lies_amid_its_points_and_keeps_a_straight_one() -> None:
    line = np.linspace(3.0, 1.0, 500)
    assert payload.smooth(line) == pytest.approx(line)
    noisy = line + np.random.default_rng(0).normal(0, 0.2, 500)
    assert np.abs(payload.smooth(noisy) - line)[10:-10].max() < np.abs(noisy - line).max() / 2


def test_a_grid_of_layers_has_the_largest_value_of_each_span() -> None:
    values = np.ones(1000)
    values[700] = 9.0
    grid = payload.layers({"head": curve_of(values), "embedding": curve_of(np.full(1000, 2.0))})
    assert grid["parts"] == ["head", "embedding"]
    edges = grid["edges"]
    (at,) = [at for at, value in enumerate(grid["values"][0]) if value == 9]
    assert edges[at] <= 701 <= edges[at + 1]
    assert set(grid["values"][1]) == {2}


@pytest.mark.parametrize(
    ("value", "short"),
    [(1.0, 1), (0.123456789, 0.12346), (-2.5e-9, -2.5e-9), (math.nan, None), (math.inf, None)],
)
def test_numbers_are_as_short_as_a_screen_is_coarse(value: float, short: float | None) -> None:
    assert payload.number(value) == short


def test_time_parts_are_shares_of_the_whole_and_none_of_nothing() -> None:
    rows = list(payload.time_rows({"data": 1.0, "training": 3.0}))
    assert [(row["part"], row["share"]) for row in rows] == [
        ("training steps", 0.75),
        ("making batches", 0.25),
    ]
    assert list(payload.time_rows({"training": 0.0})) == []


@pytest.mark.parametrize("count", [1, 2, 30, 100])
def test_the_page_of_long_runs_with_much_to_tell_fits_into_a_mail(report: Report, count: int) -> None:
    noise = np.random.default_rng(0).lognormal(size=20_000)
    names = [name for chart in CHARTS for name, _ in chart.curves]
    parts = [f"blocks.{layer}.{part}" for layer in range(12) for part in ("qkv", "proj", "up", "down")]
    long = replace(
        report,
        curves={name: curve_of(noise) for name in names},
        layers={m: {part: curve_of(noise) for part in parts} for m in ("weight_norm", "update_ratio")},
        samples=tuple(Sample(n, n, float(n), "text of a sample " * 200) for n in range(1000)),
        timeline=tuple(TimelineEntry(n, float(n), "warning", "it happened " * 10) for n in range(2000)),
    )
    shown = [payload.run(long, count, f"run-{number}") for number in range(min(count, 2))]
    whole = len(page([long])) - len(payload_json(payload.run(long)))
    assert whole + count * max(len(payload_json(run)) for run in shown) < MAIL_BYTES


def payload_json(run: dict[str, object]) -> str:
    return json.dumps(run, separators=(",", ":"))
