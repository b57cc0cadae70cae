"""Trouble in the numbers is told from a single odd document, and the data that did it is left out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpulm.checkpoints.checkpoint import LossTracker
from cpulm.training.divergence import SPIKE_UPDATES, follow, non_finite, shifted


@pytest.mark.parametrize(
    ("loss", "grad_norm", "wrong"),
    [
        (2.0, 1.0, None),
        (math.nan, 1.0, "the loss is nan"),
        (math.inf, math.nan, "the loss is inf"),
        (2.0, math.inf, "the gradient norm is inf"),
    ],
)
def test_what_is_not_finite_is_named(loss: float, grad_norm: float, wrong: str | None) -> None:
    assert non_finite(loss, grad_norm) == wrong


def heard(losses: list[float], spike_nats: float | None = 1.0) -> list[int]:
    """After how many losses each complaint came."""
    course = LossTracker()
    return [number for number, loss in enumerate(losses, 1) if follow(course, loss, spike_nats)]


def test_a_loss_that_stays_high_is_a_spike_and_a_single_one_is_not() -> None:
    calm = [2.0, 2.2, 1.9] * 20
    assert heard([*calm, 9.0, *calm, 9.0, 9.0, 9.0, 9.0, *calm]) == []
    assert heard(calm + [3.5] * SPIKE_UPDATES) == [len(calm) + SPIKE_UPDATES]
    assert heard(calm + [3.5] * SPIKE_UPDATES, spike_nats=2.0) == []
    assert heard(calm + [30.0] * 50, spike_nats=None) == []


def test_high_losses_do_not_move_the_mean_that_they_are_judged_by() -> None:
    course = LossTracker()
    for loss in [2.0] * 10 + [50.0] * (SPIKE_UPDATES - 1):
        follow(course, loss, 1.0)
    assert course == LossTracker(mean_loss=2.0, high_updates=SPIKE_UPDATES - 1)


def test_a_falling_loss_is_no_spike() -> None:
    assert heard([8.0 * 0.99**number for number in range(500)]) == []


@given(st.sets(st.integers(0, 60)))
def test_skipped_batches_are_left_out_and_no_other(skipped: set[int]) -> None:
    taken = [shifted(index, sorted(skipped)) for index in range(80)]
    expected = [batch for batch in range(200) if batch not in skipped][:80]
    assert taken == expected
