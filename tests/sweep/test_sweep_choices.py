"""The combinations that a sweep tries."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest

from cpulm.errors import SettingsError
from cpulm.sweep.choices import Axis, axes_of, drawn, grid, split_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3", ["1e-3"]),
        ("1e-3,2e-3 , 4e-3", ["1e-3", "2e-3", "4e-3"]),
        ("[a,b]", ["[a,b]"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ('"a, b",c', ['"a, b"', "c"]),
        ("'x,[',y", ["'x,['", "y"]),
        ("null,3", ["null", "3"]),
    ],
)
def test_commas_divide_outside_of_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_one_value_is_fixed_and_several_are_an_axis() -> None:
    fixed, axes = axes_of(["train.lr=1e-3,2e-3", "model.n_layer=4", "data.source=[a,b]", "eval.every=5..9"])
    assert fixed == ["model.n_layer=4", "data.source=[a,b]"]
    assert axes == [
        Axis("train.lr", ("1e-3", "2e-3")),
        Axis("eval.every", low=5.0, high=9.0, whole=True),
    ]


def test_a_path_with_dots_is_not_a_range_of_values() -> None:
    assert axes_of(["data.source=../notes"]) == (["data.source=../notes"], [])


@pytest.mark.parametrize(
    "assignments", [["train.lr=1,2", "train.lr=3"], ["train.lr=2e-3..1e-3"], ["train.lr=1e-3,"]]
)
def test_a_setting_that_cannot_be_an_axis_is_refused(assignments: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"train\.lr"):
        axes_of(assignments)


def test_a_grid_has_every_combination_once() -> None:
    assert grid([Axis("a", ("1", "2")), Axis("b", ("x", "y"))]) == [
        ("1", "x"),
        ("1", "y"),
        ("2", "x"),
        ("2", "y"),
    ]
    with pytest.raises(SettingsError, match=r"--set a=1\.\.2 is a range"):
        grid([Axis("a", low=1, high=2)])


def test_draws_are_the_same_for_a_seed_and_never_twice() -> None:
    axes = [Axis("a", ("1", "2", "3")), Axis("b", ("x", "y"))]
    found = list(drawn(axes, 7))
    assert found == list(drawn(axes, 7))
    assert found != list(drawn(axes, 8))
    assert sorted(found) == sorted(itertools.product("123", "xy"))


def test_a_range_is_drawn_evenly_over_its_orders_of_magnitude() -> None:
    values = [float(value) for (value,) in itertools.islice(drawn([Axis("a", low=1e-4, high=1e-2)], 0), 400)]
    assert all(1e-4 <= value <= 1e-2 for value in values)
    assert statistics.median(values) == pytest.approx(1e-3, rel=0.3)
    exponents = [math.log10(value) for value in values]
    assert statistics.mean(exponents) == pytest.approx(-3, abs=0.1)


def test_a_range_from_zero_is_drawn_evenly_and_one_of_whole_numbers_gives_such() -> None:
    evenly = [float(value) for (value,) in itertools.islice(drawn([Axis("a", low=0, high=0.4)], 0), 300)]
    assert statistics.median(evenly) == pytest.approx(0.2, abs=0.03)
    _, (axis,) = axes_of(["model.n_layer=2..8"])
    assert {value for (value,) in drawn([axis], 0)} == {"2", "3", "4", "5", "6", "7", "8"}
