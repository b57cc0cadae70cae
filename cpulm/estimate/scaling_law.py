"""The worth of repeated tokens, and quantiles of sampled laws.

Repeated tokens count less, as in Muennighoff et al., "Scaling Data-Constrained Language Models", 2023,
https://arxiv.org/abs/2305.16264, eq. 5.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

REPEATED_WORTH = 15.39
"""R*_D of Muennighoff et al.: after this many repetitions, another one is worth 1/e of a first pass."""


def effective_tokens(tokens: float, unique_tokens: float) -> float:
    """Return how many new tokens ``tokens`` trained ones are worth if the text has ``unique_tokens``."""
    unique = min(tokens, unique_tokens)
    repetitions = tokens / unique - 1.0
    return unique * (1.0 + REPEATED_WORTH * (1.0 - math.exp(-repetitions / REPEATED_WORTH)))


def weighted_quantiles(
    values: Floats, weights: Floats, probabilities: tuple[float, float]
) -> tuple[float, float]:
    """Return the values below which these parts of the whole weight lie."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order]) / weights.sum()
    low, high = np.interp(probabilities, cumulative, values[order])
    return float(low), float(high)
