"""Sums over units, and the standard error of a mean over them."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from cpulm.evaluation.standard_error import MOST_UNITS, Units, ratio


def test_of_units_of_one_size_the_error_is_that_of_a_mean() -> None:
    values = [2.0, 3.5, 1.0, 4.0, 2.5]
    figure = ratio(np.array(values) * 10, np.full(5, 10.0))
    assert figure.value == pytest.approx(statistics.mean(values))
    assert figure.standard_error == pytest.approx(statistics.stdev(values) / math.sqrt(5))


def test_the_error_says_how_far_means_over_such_units_scatter() -> None:
    """Documents of very different lengths, whose tokens are alike within a document and not between."""
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(400):
        lengths = rng.integers(5, 200, 60).astype(float)
        figure = ratio(lengths * rng.normal(3, 0.5, 60), lengths)
        means.append(figure.value)
        errors.append(figure.standard_error)
    assert statistics.mean(means) == pytest.approx(3, abs=0.02)
    assert statistics.mean(error for error in errors if error) == pytest.approx(
        statistics.stdev(means), rel=0.1
    )


def test_one_unit_has_no_error() -> None:
    assert ratio(np.array([6.0]), np.array([3.0])).standard_error is None


def test_sums_are_kept_by_unit_in_any_order() -> None:
    units = Units(2)
    units.add(np.array([3, 0, 3]), np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]))
    units.add(np.array([0, 1]), np.array([[8.0, 80.0], [16.0, 160.0]]))
    assert units.sums().tolist() == [[10, 100], [16, 160], [5, 50]]
    assert units.sums(at_most=2).tolist() == [[26, 260], [5, 50]]


def test_any_number_of_units_takes_the_same_memory_and_loses_nothing() -> None:
    units, total = Units(1), 3 * MOST_UNITS + 5
    for begin in range(0, total, 1000):
        numbers = np.arange(begin, min(total, begin + 1000))
        units.add(numbers, numbers[:, None].astype(float))
    sums = units.sums()
    assert units.together == 4
    assert len(sums) == math.ceil(total / 4)
    assert sums[0, 0] == 0 + 1 + 2 + 3
    assert sums.sum() == total * (total - 1) / 2
