"""Expected losses: recover a known law, and give an honest uncertainty."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cpulm.estimate import scaling_law as laws
from cpulm.estimate.scaling_law import Observation, ScalingLaw, effective_tokens

PLENTY = 1e12


def true_loss(params: float, tokens: float) -> float:
    return float(1.2 + 120.0 / params**0.4 + 400.0 / tokens**0.42)


def runs(noise: float = 0.0, seed: int = 1) -> list[Observation]:
    draw = np.random.default_rng(seed)
    shapes = itertools.product((8e5, 1.6e6, 4e6), (4e5, 1.2e6))
    return [Observation(int(n), d, PLENTY, true_loss(n, d) + noise * draw.normal()) for n, d in shapes]


@pytest.mark.parametrize(("params", "tokens"), [(4e6, 4e6), (1.2e7, 1e7), (2.5e7, 3e7)])
def test_a_known_law_is_expected_within_its_uncertainty(params: float, tokens: float) -> None:
    law = ScalingLaw(runs())
    expected = law.predict(int(params), tokens, PLENTY)
    assert expected.low <= true_loss(params, tokens) <= expected.high
    assert expected.low < expected.loss < expected.high


def test_the_further_away_the_less_certain() -> None:
    law = ScalingLaw(runs(noise=0.01))
    near, far = law.predict(4_000_000, 2e6, PLENTY), law.predict(40_000_000, 1e9, PLENTY)
    assert far.high - far.low > 2 * (near.high - near.low)


def test_more_tokens_and_more_parameters_never_hurt() -> None:
    law = ScalingLaw(runs())
    assert law.predict(10**6, 2e6, PLENTY).loss > law.predict(10**6, 8e6, PLENTY).loss
    assert law.predict(10**6, 2e6, PLENTY).loss >= law.predict(10**7, 2e6, PLENTY).loss


def test_the_loss_expected_is_never_outside_of_its_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where runs contradict each other, so that nearly all weight is on a few of the laws."""
    monkeypatch.setattr(laws, "_DRAWS", 4000)
    shapes = list(itertools.product((3e3, 9e3, 4e4), (3e4, 1.5e5)))
    for unique, losses in (
        (2e4, (1.00231, 1.0126, 0.07679, 0.07813, 0.07809, 0.10159)),
        (5e3, (2.00496, 0.08116, 0.07844, 0.07784, 1.00203, 0.10014)),
    ):
        runs_of = [Observation(int(n), d, unique, loss) for (n, d), loss in zip(shapes, losses, strict=True)]
        law = ScalingLaw(runs_of)
        for params, tokens in itertools.product((3_000, 9_000, 40_000), (2e5, 2e6)):
            expected = law.predict(params, tokens, unique)
            assert expected.low <= expected.loss <= expected.high


def test_a_bad_fit_is_reported() -> None:
    strange = [Observation(10**6, 1e6 * (k + 1), PLENTY, 3.0 + 0.5 * (k % 2)) for k in range(6)]
    assert ScalingLaw(strange).misfit_nats > 5 * ScalingLaw(runs()).misfit_nats


@pytest.mark.parametrize(
    ("tokens", "unique", "worth"),
    [(1e6, 2e6, 1e6), (2e6, 2e6, 2e6), (8e6, 2e6, 7.45e6), (1e9, 2e6, 32.78e6)],
)
def test_tokens_seen_again_count_less(tokens: float, unique: float, worth: float) -> None:
    assert effective_tokens(tokens, unique) == pytest.approx(worth, rel=0.01)


def test_two_runs_are_no_law() -> None:
    with pytest.raises(ValueError, match="at least three"):
        ScalingLaw(runs()[:2])
