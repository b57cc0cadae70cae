"""Sums over units of text in bounded memory, and the standard error of a mean over them.

The tokens of a document are not independent draws: a standard error over single tokens would be far too
small. So the sums are kept by document, or, if there are few documents, by blocks of text, and the error is
that of a ratio of two sums over units (Cochran, Sampling Techniques, 1977, chapter 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

MOST_UNITS = 1 << 16
"""Beyond it neighbouring units are merged: memory stays bounded and sums stay exact."""


@dataclass(frozen=True)
class Figure:
    """A mean with its standard error; None if there are too few units."""

    value: float
    standard_error: float | None = None


class Units:
    """``columns`` sums for each unit of a text; units are numbered from 0.

    Attributes:
        together: how many neighbouring units one row holds.
    """

    def __init__(self, columns: int) -> None:
        self.together = 1
        self._sums = np.zeros((0, columns))

    def add(self, unit: Ints, values: Floats) -> None:
        """Add ``values`` [n, columns] to the units [n]."""
        if not len(unit):
            return
        while int(unit.max()) // self.together >= MOST_UNITS:
            self._sums = _paired(self._sums)
            self.together *= 2
        rows = unit // self.together
        first, size = int(rows.min()), int(rows.max()) + 1
        if size > len(self._sums):
            room = min(MOST_UNITS, max(size, 2 * len(self._sums)))
            grown = np.zeros((room, self._sums.shape[1]))
            grown[: len(self._sums)] = self._sums
            self._sums = grown
        for column in range(values.shape[1]):
            self._sums[first:size, column] += np.bincount(rows - first, values[:, column], size - first)

    def sums(self, at_most: int = MOST_UNITS) -> Floats:
        """The units' sums [k, columns] without empty units; neighbours are merged down to ``at_most``."""
        sums = self._sums
        while np.count_nonzero(sums.any(axis=1)) > at_most:
            sums = _paired(sums)
        return sums[sums.any(axis=1)]


def _paired(sums: Floats) -> Floats:
    if len(sums) % 2:
        sums = np.concatenate([sums, np.zeros((1, sums.shape[1]))])
    paired: Floats = sums[0::2] + sums[1::2]
    return paired


def ratio(numerator: Floats, denominator: Floats) -> Figure:
    """Return the ratio of two sums over units [k], with its standard error by linearization."""
    total, k = float(denominator.sum()), len(denominator)
    value = float(numerator.sum()) / total
    if k < 2:
        return Figure(value)
    deviations = numerator - value * denominator
    return Figure(value, math.sqrt(k / (k - 1) * float(deviations @ deviations)) / total)
