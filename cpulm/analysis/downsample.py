"""Downsamples a curve from a million points to a thousand and keeps all peaks and troughs."""

from __future__ import annotations

import numpy as np

from cpulm.analysis.report import Curve, Floats, Integers


def curve(steps: Floats, tokens: Floats, seconds: Floats, values: Floats, points: int) -> Curve | None:
    """Return at most ``points`` of the values with their x values; None if no value is finite.

    All four arrays are float64, 1-D, of one length. The values fall into ranges of equal length; the minimum
    and maximum of each range are kept, and the first and last of all values.
    """
    known = np.flatnonzero(np.isfinite(values) & np.isfinite(steps) & np.isfinite(seconds))
    if not len(known):
        return None
    kept = known[_extremes(values[known], points)]
    return Curve(
        steps=steps[kept].astype(np.int64),
        tokens=np.nan_to_num(tokens[kept]).astype(np.int64),
        seconds=seconds[kept].copy(),
        values=values[kept].copy(),
    )


def _extremes(values: Floats, points: int) -> Integers:
    """Return the indices of the values to keep, ascending."""
    count = len(values)
    if count <= points:
        return np.arange(count)
    ranges = max(1, (points - 2) // 2)
    length = -(-count // ranges)
    # The last range is padded with the last value; argmin and argmax return the first index of equal values.
    padded = np.concatenate([values, np.full(-count % length, values[-1])]).reshape(-1, length)
    begins = np.arange(len(padded)) * length
    places = [[0, count - 1], begins + padded.argmin(axis=1), begins + padded.argmax(axis=1)]
    kept: Integers = np.unique(np.minimum(np.concatenate(places), count - 1))
    return kept
