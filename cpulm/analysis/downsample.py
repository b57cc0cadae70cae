"""Curves of a thousand points from a million, with every peak and every trough that was there."""

from __future__ import annotations

import numpy as np

from cpulm.analysis.report import Curve, Floats, Integers


def curve(steps: Floats, tokens: Floats, seconds: Floats, values: Floats, points: int) -> Curve | None:
    """At most ``points`` of the values, with the places where they were taken; None if none is finite.

    All four arrays are float64, 1-D, of one length. The values fall into ranges of equal length, of each of
    which the lowest and the highest one stay, and in them the first and the last of all.
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
    """Where the values stand that are kept, ascending."""
    count = len(values)
    if count <= points:
        return np.arange(count)
    ranges = max(1, (points - 2) // 2)
    length = -(-count // ranges)
    # Filled up to whole ranges with the last value, which is then found at its first place.
    padded = np.concatenate([values, np.full(-count % length, values[-1])]).reshape(-1, length)
    begins = np.arange(len(padded)) * length
    places = [[0, count - 1], begins + padded.argmin(axis=1), begins + padded.argmax(axis=1)]
    kept: Integers = np.unique(np.minimum(np.concatenate(places), count - 1))
    return kept
