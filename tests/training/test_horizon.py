"""The progress of a run, by steps, by run time, and by the wall clock."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

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
    train = validate({"train": {"max_time": "1h"}}).train
    assert horizon_of(train, None, seconds_gone=60) == Horizon(seconds=3540)
    moment = datetime(2030, 5, 1, 7, tzinfo=timezone.utc)
    train = validate({"train": {"until": moment.isoformat()}}).train
    assert horizon_of(train, None, seconds_gone=60) == Horizon(deadline=moment.timestamp())
    assert horizon_of(validate({"train": {"tokens": 10}}).train, 5) == Horizon(steps=5)
