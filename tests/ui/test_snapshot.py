"""The reducer of events: bounded memory, no lost peaks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest

from cpulm.events import Event, GenerationStarted, Progress, RunStarted, StepDone, Validated
from cpulm.ui.curve import Pace, ThinnedCurve
from cpulm.ui.snapshot import Snapshot, fold


def folded(events: Iterable[Event]) -> Snapshot:
    snapshot = Snapshot()
    for event in events:
        snapshot = fold(snapshot, event)
    return snapshot


def test_a_snapshot_holds_the_newest_of_everything(events: list[Event]) -> None:
    snapshot = folded(events)
    assert snapshot.step_number == 100
    assert snapshot.progress == 1.0
    assert snapshot.validated is not None
    assert snapshot.validated.step == 80
    assert snapshot.best is not None
    assert snapshot.checkpoint is not None
    assert snapshot.sample is not None
    assert snapshot.machine is not None
    assert snapshot.finished is not None
    assert [notice.level for notice in snapshot.notices] == ["info", "warning"]
    assert [stage.last.stage for stage in snapshot.stages] == ["tokenizing", "validating", "validating"]


def test_folding_leaves_the_snapshot_before_as_it_was(events: list[Event]) -> None:
    before = folded(events[:60])
    copy = tuple(before)
    folded_on = fold(before, events[60])
    assert tuple(before) == copy
    assert folded_on is not before


def test_a_curve_of_60_000_steps_stays_small_and_keeps_its_peaks() -> None:
    curve = ThinnedCurve()
    for step in range(1, 60_001):
        value = 50.0 if step == 21_001 else -3.0 if step == 45_000 else 2.0
        curve = curve.add(step, value)
    buckets = curve.buckets
    assert len(buckets) <= 1024
    assert max(bucket.high for bucket in buckets) == 50.0
    assert min(bucket.low for bucket in buckets) == -3.0
    assert sum(bucket.points for bucket in buckets) == 60_000
    assert (buckets[0].first, buckets[-1].last) == (1, 60_000)
    peak = next(bucket for bucket in buckets if bucket.high == 50.0)
    assert peak.first <= 21_001 <= peak.last
    assert all(left.last + 1 == right.first for left, right in pairwise(buckets))


def test_a_snapshot_after_200_000_steps_is_no_larger_than_after_20_000(step: Callable[..., StepDone]) -> None:
    def size(thing: object) -> int:
        inner = sum(size(part) for part in thing) if isinstance(thing, tuple) else 0
        return sys.getsizeof(thing) + inner

    snapshot = Snapshot()
    sizes = {}
    event = step(1, 2.0)
    for number in range(1, 200_001):
        snapshot = fold(snapshot, event)
        if number in (20_000, 200_000):
            sizes[number] = size(snapshot)
    assert sizes[200_000] <= 1.5 * sizes[20_000]
    assert sizes[200_000] < 500_000


def test_non_finite_losses_are_shown_but_not_averaged(step: Callable[..., StepDone]) -> None:
    snapshot = folded([step(1, 3.0), step(2, math.nan), step(3, math.inf)])
    assert snapshot.step is not None
    assert snapshot.step.loss == math.inf
    assert snapshot.smoothed.value == pytest.approx(3.0)
    assert sum(bucket.points for bucket in snapshot.losses.buckets) == 1


def test_the_smoothed_loss_of_equal_losses_is_that_loss_from_the_first_step_on(
    step: Callable[..., StepDone],
) -> None:
    snapshot = Snapshot()
    for number in range(1, 50):
        snapshot = fold(snapshot, step(number, 4.0))
        assert snapshot.smoothed.value == pytest.approx(4.0)


@pytest.mark.parametrize("seconds", [0.001, 0.1, 1.0, 60.0])
def test_the_pace_is_steps_and_tokens_per_second(seconds: float) -> None:
    pace = Pace()
    for _ in range(200):
        pace = pace.add(seconds, 512)
    assert pace.steps_per_second == pytest.approx(1 / seconds)
    assert pace.tokens_per_second == pytest.approx(512 / seconds)
    assert len(pace.chunks) <= 20


def test_the_first_step_with_its_compilation_does_not_slow_the_pace() -> None:
    pace = Pace().add(40.0, 512).add(0.5, 512)
    assert pace.steps_per_second == pytest.approx(2.0)


def test_the_pace_follows_a_change_of_speed() -> None:
    pace = Pace()
    for seconds in [1.0] * 100 + [0.1] * 200:
        pace = pace.add(seconds, 1)
    assert pace.steps_per_second == pytest.approx(10.0)


def test_the_time_left_counts_what_happens_between_steps(
    started: Callable[..., RunStarted], step: Callable[..., StepDone]
) -> None:
    time = 1000.0
    events: list[Event] = [started(time)]
    for number in range(1, 51):
        time += 0.75  # half a second of training and a quarter for other things
        events.append(step(number, 2.0, time, 0.5))
    left = folded(events).seconds_left
    assert left == pytest.approx(50 * 0.75, rel=0.01)


def test_the_time_left_of_a_run_limited_by_time_is_what_is_left_of_it(
    started: Callable[..., RunStarted], step: Callable[..., StepDone]
) -> None:
    snapshot = folded([started(steps=None), step(10, 2.0, seconds=6.0)])
    assert snapshot.seconds_left == pytest.approx(540.0)


def test_a_resumed_run_keeps_its_curve_and_begins_a_new_pace(
    started: Callable[..., RunStarted], step: Callable[..., StepDone]
) -> None:
    first = folded([started(), *(step(number, 3.0) for number in range(1, 11))])
    resumed = fold(first, started(step=10))
    assert resumed.losses == first.losses
    assert resumed.pace.steps_per_second is None
    on = fold(resumed, step(11, 3.0, seconds=2.0))
    assert on.pace.tokens_per_second == pytest.approx(4096 / 2.0)


def test_a_stage_knows_its_rate_and_its_time_left() -> None:
    snapshot = folded(
        Progress(time=100.0 + second, stage="tokenizing", done=10.0 * second, total=100.0, unit="documents")
        for second in range(5)
    )
    assert snapshot.stage is not None
    assert snapshot.stage.per_second == pytest.approx(10.0)
    assert snapshot.stage.fraction == pytest.approx(0.4)
    assert snapshot.stage.seconds_left == pytest.approx(6.0)


def test_many_validations_are_thinned(events: list[Event]) -> None:
    validated = next(event for event in events if isinstance(event, Validated))
    snapshot = Snapshot()
    for _ in range(20_000):
        snapshot = fold(snapshot, validated)
    assert len(snapshot.validations.buckets) <= 1024


def test_the_losses_of_new_weights_are_averaged_alone(step: Callable[..., StepDone]) -> None:
    border = GenerationStarted(step=1, generation=2, generations=2, seed=2, teacher_step=1, teacher_loss=2.0)
    snapshot = folded([step(1, 2.0), border, step(2, 9.0)])
    assert snapshot.generation == 2
    assert snapshot.smoothed.value == pytest.approx(9.0)
    assert "generation 2 of 2 after step 1" in snapshot.notices[-1].message
