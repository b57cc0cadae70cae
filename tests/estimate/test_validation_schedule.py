"""After which updates a run validates."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cpulm.estimate.validation_schedule import (
    ValidationSchedule,
    batches_computed,
    compared_every,
    validation_schedule,
)
from cpulm.settings.resolve_settings import resolve


def due(schedule: ValidationSchedule, steps: int) -> list[int]:
    return [step for step in range(1, steps + 1) if schedule.is_due(step)]


def test_a_text_that_is_repeated_soon_is_validated_often_at_first() -> None:
    schedule = ValidationSchedule(every=250, pass_updates=33, cost_updates=1.5)
    early = [32, 63, 94, 125, 157, 188, 219, 250, 313, 375, 438, 500, 625, 750, 875, 1000, 1250]
    assert due(schedule, 1499) == early


def test_a_text_seen_less_than_twice_is_validated_as_the_setting_says() -> None:
    schedule = ValidationSchedule(every=250, pass_updates=500, cost_updates=1.5)
    assert due(schedule, 1000) == [250, 500, 750, 1000]


def test_validations_that_take_long_are_not_made_more_often() -> None:
    assert due(ValidationSchedule(every=250, pass_updates=33, cost_updates=20), 750) == [250, 500, 750]


@pytest.mark.parametrize("every", [1, 7, 100, 250])
@pytest.mark.parametrize("pass_updates", [0.3, 33, 700])
@pytest.mark.parametrize("cost_updates", [0.01, 1.5, 40])
def test_the_promises_of_the_schedule(every: int, pass_updates: float, cost_updates: float) -> None:
    schedule = ValidationSchedule(every, pass_updates, cost_updates)
    steps = due(schedule, 3000)
    assert set(range(every, 3001, every)) <= set(steps)
    assert schedule.count(3000) == len(steps) + (3000 % every > 0)
    for before, step in pairwise(steps):
        gap = step - before
        assert gap <= every
        affordable = gap <= 1 + 2 * 20 * cost_updates  # half that gap would cost more than a twentieth
        assert affordable or gap <= 1 + max(0.5 * pass_updates, 0.25 * step)
        assert gap in (every, every - 1) or gap + 1 >= 20 * cost_updates


def test_counting_takes_no_time_however_long_the_run() -> None:
    schedule = ValidationSchedule(every=10**15, pass_updates=100, cost_updates=0.01)
    assert schedule.count(10**15) == pytest.approx(4 * 42, abs=20)  # four in each doubling of the step


def test_the_schedule_of_a_run_follows_its_settings_and_its_text() -> None:
    settings = resolve(
        assignments=["model.block_size=16", "train.micro_batch_size=4", "train.grad_accum_steps=2"]
    )
    schedule = validation_schedule(settings, train_tokens=1280, val_batches=10)
    assert (schedule.every, schedule.pass_updates) == (250, 10)
    assert schedule.cost_updates == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("batches", "every", "computed"),
    [(1, 1, 2), (4, 1, 8), (8, 2, 12), (20, 5, 24), (32, 8, 36), (80, 8, 90)],
)
def test_on_how_many_batches_trained_and_averaged_weights_are_compared(
    batches: int, every: int, computed: float
) -> None:
    """Here a batch has 2,048 tokens: on at least 8,192 of them, and on an eighth of many."""
    sizes = ["model.block_size=256", "train.micro_batch_size=8"]
    alone, both = resolve(assignments=sizes), resolve(assignments=[*sizes, "train.average_fraction=0.2"])
    assert compared_every(both, batches) == every
    assert batches_computed(both, batches) == computed
    assert batches_computed(alone, batches) == batches
