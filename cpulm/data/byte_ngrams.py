"""How predictable a text is: a cheap measurement from which the loss of models is expected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cpulm.data.loader import Tokens
from cpulm.data.tokenfile import TokenFolder

Numbers: TypeAlias = npt.NDArray[np.int64]

_ORDER = 4
"""Bytes of an n-gram. Of 2 to 7 the one whose losses were nearest to those of models on 17 texts."""
_DISCOUNT = 0.75
_PIECE_BYTES = 512
_MOST_TRAIN_BYTES, _MOST_VAL_BYTES = 1_000_000, 150_000
_HALVINGS = 3
_LEAST_BYTES = 100
"""Of each split: fewer say nothing."""
_LEAST_BITS = 1e-3
"""Of a byte: a text of one letter would cost nothing, and has no logarithm."""
_USUAL_SLOPE = 0.06
"""The median of 17 texts, for a text that is too short for four sizes."""


def text_curve(tokens: TokenFolder) -> tuple[float, float] | None:
    """How many bits a byte of the validation split costs by n-grams of the training split.

    The n-grams are counted in pieces spread evenly over at most one MB, and in a half, a quarter and an
    eighth of these.

    Returns:
        ``level`` and ``slope`` of the power law ``level * D ** -slope`` in D million bytes through the four
        losses; None if a split is shorter than 100 bytes.
    """
    pieces = list(_pieces(tokens, tokens.train, _MOST_TRAIN_BYTES))
    val = _bytes(b"".join(_pieces(tokens, tokens.val, _MOST_VAL_BYTES)))
    points = []
    for step in (1 << halving for halving in range(_HALVINGS + 1) if 1 << halving <= len(pieces)):
        train = _bytes(b"".join(pieces[::step]))
        if min(len(train), len(val)) >= _LEAST_BYTES:
            bits = max(bits_per_byte(train, val), _LEAST_BITS)
            points.append((math.log(len(train) / 1e6), math.log(bits)))
    if not points:
        return None
    size, losses = np.array(points).T
    slope = -float(np.polyfit(size, losses, 1)[0]) if len(points) > _HALVINGS else _USUAL_SLOPE
    return math.exp(float(np.mean(losses + slope * size))), slope


def bits_per_byte(train: Numbers, val: Numbers) -> float:
    """The loss of ``val`` by n-grams of ``train``, interpolated with absolute discounting.

    Ney, Essen, Kneser (1994), "On structuring probabilistic dependences in stochastic language modelling".
    """
    p = np.full(len(val) - _ORDER + 1, 1 / 256)
    for order in range(1, _ORDER + 1):
        grams, counts = np.unique(_grams(train, order), return_counts=True)
        histories, start = np.unique(grams >> 8, return_index=True)
        in_all, different = np.add.reduceat(counts, start), np.diff(start, append=len(grams))
        wanted = _grams(val, order)[_ORDER - order :]
        at, is_known = _find(grams, wanted)
        count = np.where(is_known, counts[at], 0)
        at, is_known = _find(histories, wanted >> 8)
        found = (np.maximum(count - _DISCOUNT, 0) + _DISCOUNT * different[at] * p) / in_all[at]
        p = np.where(is_known, found, p)
    return float(-np.log2(p).mean())


def _grams(text: Numbers, order: int) -> Numbers:
    """The n-grams of a text as numbers."""
    grams = np.zeros(len(text) - order + 1, dtype=np.int64)
    for place in range(order):
        grams = grams << 8 | text[place : place + len(grams)]
    return grams


def _find(known: Numbers, wanted: Numbers) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Where each number stands in ``known``, which is sorted, and whether it does."""
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return at, known[at] == wanted


def _bytes(text: bytes) -> Numbers:
    return np.frombuffer(text, np.uint8).astype(np.int64)


def _pieces(tokens: TokenFolder, split: Tokens, most_bytes: int) -> Iterator[bytes]:
    """Parts of a split as text, spread evenly over it."""
    length = max(1, round(_PIECE_BYTES / tokens.bytes_per_token))
    step = max(1, math.ceil(len(split) * tokens.bytes_per_token / most_bytes)) * length
    for start in range(0, len(split), step):
        yield tokens.tokenizer.decode(split[start : start + length].tolist()).encode()
