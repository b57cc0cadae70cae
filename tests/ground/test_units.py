"""Durations, sizes and counts as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpulm.units import format_bytes, format_count, format_duration, parse_duration, typed_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("10min", 600),
        ("10 minutes", 600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1.5h", 5400),
        ("1.5 HOURS", 5400),
        ("2d", 172800),
        (" 8h ", 28800),
        (45, 45),
        (0.25, 0.25),
    ],
)
def test_durations_as_people_write_them(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "0", "0s", "-5", "-5s", "8x", "h", "1h30", "1:30", "1e3", "nan", "inf", True, 10**400]
)
def test_an_invalid_duration_is_refused_and_named(text: str | float) -> None:
    with pytest.raises(ValueError, match="90s, 10min or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (0.42, "0.4s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (3599.6, "1h 00m"),
        (7620, "2h 07m"),
        (86399.6, "1d 00h"),
        (97200, "1d 03h"),
        (float("inf"), "?"),
        (float("nan"), "?"),
    ],
)
def test_durations_are_shown_in_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(1e-3, 1e8))
def test_a_shown_duration_is_read_back_to_the_shown_precision(seconds: float) -> None:
    shown = format_duration(seconds)
    if shown == "0.0s":
        return
    coarsest = {"s": 0.05 if seconds < 10 else 0.5, "m": 30, "h": 1800}[shown[-1]]
    assert abs(parse_duration(shown) - seconds) <= 2 * coarsest


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023.6, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (24 * 2**30, "24.0 GiB"),
        (5000 * 2**40, "5000.0 TiB"),
        (-1536, "-1.5 KiB"),
    ],
)
def test_sizes_are_in_binary_units(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (999, "999"),
        (999.6, "1.00 K"),
        (1234, "1.23 K"),
        (9996, "10.0 K"),
        (19_500, "19.5 K"),
        (99_960, "100 K"),
        (999_499, "999 K"),
        (999_500, "1.00 M"),
        (10_700_000, "10.7 M"),
        (1_200_000_000, "1.20 B"),
        (3e15, "3000 T"),
    ],
)
def test_counts_have_three_significant_digits(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(28800.0, "8h"), (5400, "1h30m"), (90, "1m30s"), (600.0, "10m"), (0.5, "0.5s"), (90000.25, "90000.25s")],
)
def test_a_duration_is_typed_as_it_is_read(seconds: float, text: str) -> None:
    assert typed_duration(seconds) == text
    assert parse_duration(text) == seconds
