"""Predicts the loss of a model of N parameters after D tokens, from a few short runs.

The law is ``L(N, D) = E + A / N^alpha + B / D^beta`` (Hoffmann et al., "Training Compute-Optimal Large
Language Models", 2022, https://arxiv.org/abs/2203.15556, eq. 10). Repeated tokens count less, as in
Muennighoff et al., "Scaling Data-Constrained Language Models", 2023, https://arxiv.org/abs/2305.16264, eq. 5.

A few short runs do not determine five parameters. So the parameters are sampled many times, each sample is
weighted by its likelihood, and the weighted predictions give the expected loss and its uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

REPEATED_WORTH = 15.39
"""R*_D of Muennighoff et al.: after this many repetitions, another one is worth 1/e of a first pass."""
_DRAWS = 40_000
_NOISE_NATS = 0.02
"""Standard deviation of a run's validation loss: by its seed, and by all that the law does not describe."""
_ALPHA = (0.2, 0.6)
_BETA = (0.2, 0.7)
"""Ranges of the exponents: Hoffmann et al. found 0.34 and 0.28 with models a thousand times larger."""


@dataclass(frozen=True)
class Observation:
    """One run: its parameters, trained tokens, unique tokens among them, and loss in nats."""

    params: int
    tokens: float
    unique_tokens: float
    loss: float


@dataclass(frozen=True)
class Expectation:
    """An expected loss in nats; 80% of the weighted samples are between ``low`` and ``high``."""

    loss: float
    low: float
    high: float


class ScalingLaw:
    """Samples of the law's parameters, weighted by their likelihood given some runs.

    Args:
        runs: at least three, of at least two sizes and two lengths.
    """

    def __init__(self, runs: Sequence[Observation], seed: int = 0) -> None:
        if len(runs) < 3:
            raise ValueError("a law needs at least three runs")
        draw = np.random.default_rng(seed)
        losses = np.array([run.loss for run in runs])
        self._alpha = draw.uniform(*_ALPHA, _DRAWS)
        self._beta = draw.uniform(*_BETA, _DRAWS)
        floor = draw.uniform(0.0, losses.min(), _DRAWS)
        params = np.array([run.params for run in runs], dtype=float)
        tokens = np.array([effective_tokens(run.tokens, run.unique_tokens) for run in runs])
        # Given the exponents and E, a non-negative linear least squares problem determines A and B.
        n_terms = params[None, :] ** -self._alpha[:, None]
        d_terms = tokens[None, :] ** -self._beta[:, None]
        rest = losses[None, :] - floor[:, None]
        a, b = _non_negative_least_squares(n_terms, d_terms, rest)
        misfit = rest - a[:, None] * n_terms - b[:, None] * d_terms
        log_weight = -0.5 * np.sum((misfit / _NOISE_NATS) ** 2, axis=1)
        weight = np.exp(log_weight - log_weight.max())
        self._weight: Floats = weight / weight.sum()
        self._floor, self._a, self._b = floor, a, b
        self.misfit_nats = float(np.sqrt(np.mean(misfit**2, axis=1)) @ self._weight)
        """Root mean square residual of the runs."""

    def predict(self, params: int, tokens: float, unique_tokens: float) -> Expectation:
        """Predict the loss of a model after ``tokens`` tokens of a text of ``unique_tokens`` tokens."""
        effective = effective_tokens(tokens, unique_tokens)
        losses = self._floor + self._a * params**-self._alpha + self._b * effective**-self._beta
        low, high = weighted_quantiles(losses, self._weight, (0.1, 0.9))
        mean = float(losses @ self._weight)  # a few extreme samples may move it out of the range
        return Expectation(mean, min(low, mean), max(high, mean))


def effective_tokens(tokens: float, unique_tokens: float) -> float:
    """Return how many new tokens ``tokens`` trained ones are worth if the text has ``unique_tokens``."""
    unique = min(tokens, unique_tokens)
    repetitions = tokens / unique - 1.0
    return unique * (1.0 + REPEATED_WORTH * (1.0 - math.exp(-repetitions / REPEATED_WORTH)))


def _non_negative_least_squares(x: Floats, y: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Solve ``a x + b y = target`` in each row, by least squares with ``a, b >= 0``."""
    xx, yy, xy = (np.sum(p * q, axis=1) for p, q in ((x, x), (y, y), (x, y)))
    xt, yt = np.sum(x * target, axis=1), np.sum(y * target, axis=1)
    determinant = np.maximum(xx * yy - xy**2, 1e-300)
    a, b = (xt * yy - yt * xy) / determinant, (yt * xx - xt * xy) / determinant
    alone_a, alone_b = np.maximum(xt / xx, 0.0), np.maximum(yt / yy, 0.0)
    a, b = np.where(b < 0, alone_a, a), np.where(b < 0, 0.0, b)
    return np.where(a < 0, 0.0, a), np.where(a < 0, alone_b, b)


def weighted_quantiles(
    values: Floats, weights: Floats, probabilities: tuple[float, float]
) -> tuple[float, float]:
    """Return the values below which these parts of the whole weight lie."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order]) / weights.sum()
    low, high = np.interp(probabilities, cumulative, values[order])
    return float(low), float(high)
