"""Distinct n-grams and repetition against counts by hand."""

from __future__ import annotations

import pytest

from cpulm.evaluation.repetition import variety


def test_distinct_ngrams_are_counted_over_all_texts() -> None:
    found = variety(["a b a b", "a, b"])
    assert found.distinct == {1: 3 / 7, 2: 4 / 5, 3: 3 / 3, 4: 1 / 1}


def test_a_text_that_goes_in_circles_repeats_itself_and_two_alike_do_not() -> None:
    assert variety(["to be or not " * 10]).repetition == pytest.approx(1 - 4 / 37)
    assert variety(["to be or not to see"] * 2).repetition == 0


def test_texts_that_are_too_short_have_no_repetition() -> None:
    found = variety(["two words", ""])
    assert found.repetition is None
    assert found.distinct == {1: 1.0, 2: 1.0}
