"""A spike is distinguished from a single unusual document, and the data that caused it is skipped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cpulm.checkpoints.train_state import SPIKE_UPDATES, LossTracker
from cpulm.training.divergence import unskipped_batch


def heard(losses: list[float], spike_nats: float | None = 1.0) -> list[int]:
    """After how many losses each problem was reported."""
    tracker = LossTracker()
    return [number for number, loss in enumerate(losses, 1) if tracker.update(loss, spike_nats)]


def test_a_loss_that_stays_high_is_a_spike_and_a_single_one_is_not() -> None:
    calm = [2.0, 2.2, 1.9] * 20
    assert heard([*calm, 9.0, *calm, 9.0, 9.0, 9.0, 9.0, *calm]) == []
    assert heard(calm + [3.5] * SPIKE_UPDATES) == [len(calm) + SPIKE_UPDATES]
    assert heard(calm + [3.5] * SPIKE_UPDATES, spike_nats=2.0) == []
    assert heard(calm + [30.0] * 50, spike_nats=None) == []


def test_high_losses_do_not_move_the_mean_that_they_are_judged_by() -> None:
    tracker = LossTracker()
    for loss in [2.0] * 10 + [50.0] * (SPIKE_UPDATES - 1):
        tracker.update(loss, 1.0)
    assert tracker == LossTracker(mean_loss=2.0, high_updates=SPIKE_UPDATES - 1)


def test_a_falling_loss_is_not_a_spike() -> None:
    assert heard([8.0 * 0.99**number for number in range(500)]) == []


@given(st.sets(st.integers(0, 60)))
def test_skipped_batches_are_left_out_and_no_other(skipped: set[int]) -> None:
    taken = [unskipped_batch(index, sorted(skipped)) for index in range(80)]
    expected = [batch for batch in range(200) if batch not in skipped][:80]
    assert taken == expected
