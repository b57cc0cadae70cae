"""When the worse half of the trials is stopped."""

from __future__ import annotations

import pytest

from cpulm.sweep.halving import Rung, rung_steps, rungs


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        (1, []),
        (2, [(0.5, 1)]),
        (3, [(0.5, 2)]),
        (4, [(0.25, 2), (0.5, 1)]),
        (7, [(0.25, 4), (0.5, 2)]),
        (8, [(0.125, 4), (0.25, 2), (0.5, 1)]),
        (40, [(0.125, 20), (0.25, 10), (0.5, 5)]),
    ],
)
def test_at_each_rung_the_better_half_continues(trials: int, expected: list[tuple[float, int]]) -> None:
    assert rungs(trials) == tuple(Rung(*one) for one in expected)


@pytest.mark.parametrize("steps", [7, 100, 400, 1234, 9999])
@pytest.mark.parametrize("eval_every", [1, 30, 250, 10_000])
def test_every_rung_is_at_a_validation(steps: int, eval_every: int) -> None:
    every, at = rung_steps(steps, eval_every, rungs(8))
    assert every <= max(1, eval_every)
    assert all(step % every == 0 and 0 < step < steps for step in at)
    assert list(at) == sorted(at)
    for step, rung in zip(at, rungs(8), strict=True):
        assert step == pytest.approx(steps * rung.fraction, abs=max(1, every / 2))


def test_without_halving_the_validations_stay_as_they_are() -> None:
    assert rung_steps(1000, 250, ()) == (250, ())
