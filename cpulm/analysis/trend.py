"""Predicts the gain of more training by power laws through a run's losses, with the uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cpulm.analysis.report import Floats
from cpulm.estimate.scaling_law import effective_tokens, weighted_quantiles

_DRAWS = 20_000
_BETA = (0.2, 0.7)
"""Range of the exponent of tokens: Hoffmann et al. found 0.28; as in the scaling law."""
_LEAST_NOISE_NATS = 0.01
"""The least noise that is assumed, even if the losses are closer to a power law."""
FEWEST_POINTS = 4


@dataclass(frozen=True)
class Gain:
    """The expected fall of the loss in nats; 80% of the weighted samples are between ``low`` and ``high``."""

    nats: float
    low: float
    high: float


def gain(tokens: Floats, losses: Floats, now: float, more: float, unique_tokens: float) -> Gain | None:
    """Predict the gain of a run with ``now + more`` tokens over one with ``now`` tokens.

    The law is ``L = E + A / D^beta``. Losses at one learning rate determine A and beta. What the decay at the
    end of a run gains is part of E and cancels out in the difference. A few losses do not determine three
    parameters, so these are sampled many times, and each sample is weighted by its likelihood.

    Args:
        tokens: D, tokens trained before each loss, float64 [n]; repeated ones count less.
        losses: in nats, float64 [n].
        unique_tokens: how many different tokens there are.

    Returns:
        None if the losses are too few.
    """
    if len(losses) < FEWEST_POINTS or now <= 0 or unique_tokens <= 0:
        return None
    draw = np.random.default_rng(0)
    beta = draw.uniform(*_BETA, _DRAWS)[:, None]
    floor = draw.uniform(0.0, float(losses.min()), _DRAWS)[:, None]
    worth = np.array([effective_tokens(float(count), unique_tokens) for count in tokens])
    terms = (worth / worth[-1])[None, :] ** -beta
    rest = losses[None, :] - floor
    a = np.maximum(_dots(terms, rest) / _dots(terms, terms), 0.0)
    # In place: for a long run each of the two arrays has a hundred megabytes.
    terms *= a[:, None]
    rest -= terms
    misfit = np.sqrt(_dots(rest, rest) / len(losses))
    # The residual of the best fit, which has two free parameters, is the noise of the losses.
    freedom = len(losses) / max(1, len(losses) - 2)
    noise = max(_LEAST_NOISE_NATS, float(misfit.min()) * freedom**0.5)
    weight = np.exp(-0.5 * len(losses) * (misfit**2 - misfit.min() ** 2) / noise**2)
    here = effective_tokens(now, unique_tokens) / worth[-1]
    there = effective_tokens(now + more, unique_tokens) / worth[-1]
    gains = a * (here ** -beta[:, 0] - there ** -beta[:, 0])
    low, high = weighted_quantiles(gains, weight, (0.1, 0.9))
    return Gain(float(np.average(gains, weights=weight)), low, high)


def _dots(left: Floats, right: Floats) -> Floats:
    """Return the dot product of each row of ``left`` with that of ``right``."""
    dots: Floats = np.einsum("ij,ij->i", left, right)
    return dots
