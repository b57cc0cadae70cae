"""The progress of a run, by steps, by run time, and by the wall clock."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from cpulm.checkpoints.train_state import TrainState
from cpulm.settings.resolve_settings import validate
from cpulm.training.horizon import Horizon, horizon_of

SEVEN = 1_000_000.0


@pytest.mark.parametrize(
    ("horizon", "step", "elapsed", "now", "progress"),
    [
        (Horizon(steps=200), 50, 1e9, 0.0, 0.25),
        (Horizon(steps=200), 900, 0.0, 0.0, 1.0),
        (Horizon(seconds=100), 7, 25.0, 0.0, 0.25),
        (Horizon(seconds=100, reserve_seconds=20), 7, 40.0, 0.0, 0.5),
        (Horizon(seconds=100, reserve_seconds=20), 7, 80.0, 0.0, 1.0),
        (Horizon(seconds=100), 0, 0.0, 0.0, 0.0),
        (Horizon(deadline=SEVEN), 7, 0.0, SEVEN - 100, 0.0),
        (Horizon(deadline=SEVEN), 7, 60.0, SEVEN - 20, 0.75),
        (Horizon(deadline=SEVEN, reserve_seconds=20), 7, 60.0, SEVEN - 20, 1.0),
        (Horizon(deadline=SEVEN), 7, 60.0, SEVEN + 1, 1.0),
        (Horizon(seconds=100, most_steps=10), 2, 10.0, 0.0, 0.2),
        (Horizon(seconds=100, most_steps=10), 2, 30.0, 0.0, 0.3),
        (Horizon(seconds=100, most_steps=10), 10, 30.0, 0.0, 1.0),
        (Horizon(seconds=100, most_steps=10, generations_left=2), 10, 30.0, 0.0, 0.5),
        (Horizon(deadline=SEVEN, most_steps=10, first_step=6), 12, 20.0, SEVEN - 80, 0.75),
    ],
)
def test_progress(horizon: Horizon, step: int, elapsed: float, now: float, progress: float) -> None:
    assert horizon.progress(step, elapsed, now) == pytest.approx(progress)


def test_a_machine_that_slept_is_nearer_to_its_deadline() -> None:
    horizon = Horizon(deadline=SEVEN)
    awake = horizon.progress(0, 3600.0, SEVEN - 3600)
    slept = horizon.progress(0, 3600.0, SEVEN - 1200)
    assert (awake, slept) == (0.5, 0.75)


def test_the_settings_name_the_horizon() -> None:
    def horizon(**train: object) -> Horizon:
        settings = validate({"train": {"micro_batch_size": 2, **train}, "model": {"block_size": 8}})
        return horizon_of(settings, train_tokens=64, seconds_gone=60)

    assert horizon(max_time="1h") == Horizon(seconds=3540)
    assert horizon(max_time="1h", max_passes=2.1) == Horizon(seconds=3540, most_steps=9)
    moment = datetime(2030, 5, 1, 7, tzinfo=timezone.utc)
    assert horizon(until=moment.isoformat()) == Horizon(deadline=moment.timestamp())
    assert horizon(tokens=80, max_passes=0.5) == Horizon(steps=5)


@pytest.mark.parametrize(
    ("slower", "passes", "seconds"),
    [(1, 10, 40.0), (3, 50 / 6, 100.0)],  # as fast as planned, and three times slower
)
def test_passes_end_a_run_before_its_time_and_time_ends_it_before_its_passes(
    slower: int, passes: float, seconds: float
) -> None:
    horizon = Horizon(seconds=100, most_steps=40).of_generation(TrainState(), 2)
    state, elapsed, pace = TrainState(), 0.0, 0.5 * slower
    for _ in range(2):
        while horizon.generation_progress(state.step, elapsed, 0.0) < 1.0:
            state.step, elapsed = state.step + 1, elapsed + pace
        assert state.generation_steps == pytest.approx(4 * passes, abs=1)
        assert horizon.progress(state.step, elapsed, 0.0) == pytest.approx(state.generation / 2, abs=0.02)
        state = state.next_generation("", elapsed)
        horizon = horizon.of_generation(state, 2)
    assert elapsed == pytest.approx(seconds, abs=2 * pace)
