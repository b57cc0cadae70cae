"""Splits tokens at random into those that they were merged of: a text is not the same each time it is seen.

A model that sees a small text many times memorizes it. BPE-dropout (Provilkov et al.,
https://arxiv.org/abs/1910.13267) leaves merges out at random when the text is encoded. Here merges of the
encoded text are undone, which needs neither the text nor an encoder, and is a pure function of the row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cpulm.data.random_bits import splitmix64, splitmix64_each
from cpulm.data.tokenizer import Tokenizer

Ids = npt.NDArray[np.int64]

_HALF = np.uint64(1 << 63)
_ODD = np.uint64(0x9E3779B97F4A7C15)


class SplitRows(NamedTuple):
    """Rows of the length of those that were split; what does not fit any more is left out at the end.

    Attributes:
        ids: int64 [B, T].
        origins: int64 [B, T], where in its row the token that it is a part of was.
    """

    ids: Ids
    origins: Ids


class TokenSplitter:
    """Splits tokens in half of the rows; the others stay as they are.

    Args:
        parts: int64 [V, 2], the two tokens that each was merged of; -1: it was not merged.
        probability: that a token is split, and then each of its parts.
        seed: of the choice.
    """

    def __init__(self, parts: Ids, probability: float, seed: int) -> None:
        self._parts = parts
        self._threshold = np.uint64(probability * 2**64)
        self._key = splitmix64(seed)

    def split(self, rows: Ids, first_row: int) -> SplitRows:
        """Split tokens of ``rows``, int64 [B, T], by the numbers ``first_row``, ``first_row + 1``, ..."""
        count, length = rows.shape
        numbers = np.arange(first_row, first_row + count, dtype=np.uint64)
        keys = splitmix64_each(np.uint64(self._key) ^ numbers)
        ids, places = rows.reshape(-1), np.arange(rows.size)
        # Of each token, and of its parts, a number that decides whether it is split.
        numbers = np.repeat(keys, length) + _ODD * np.tile(np.arange(length, dtype=np.uint64), count)
        fresh = np.flatnonzero(np.repeat(keys < _HALF, length))
        while True:
            chances = splitmix64_each(numbers[fresh])
            split = fresh[(chances < self._threshold) & (self._parts[ids[fresh], 0] >= 0)]
            if not len(split):
                break
            parts, times = self._parts[ids[split]], np.ones(len(ids), dtype=np.int64)
            times[split] = 2
            ids, places, numbers = (np.repeat(each, times) for each in (ids, places, numbers))
            lefts = split + np.arange(len(split))  # each split before it moved it by one
            fresh = np.column_stack([lefts, lefts + 1]).reshape(-1)
            ids[fresh] = parts.reshape(-1)
            numbers[fresh] *= _ODD
            numbers[lefts + 1] += np.uint64(1)
        begins = np.searchsorted(places, np.arange(count) * length)
        kept = begins[:, None] + np.arange(length)
        return SplitRows(ids[kept], places[kept] % length)


def merged_parts(tokenizer: Tokenizer) -> Ids:
    """The two tokens that each token of a vocabulary was merged of, as :class:`TokenSplitter` takes them."""
    parts = np.full((tokenizer.vocab_size, 2), -1, dtype=np.int64)
    vocab = tokenizer.inner.get_vocab()
    for merge in tokenizer.parts["model"].get("merges", ()):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        whole = vocab.get(left + right)
        if left and right and whole is not None:  # a tokenizer.json may join its tokens in another way
            parts[whole] = vocab[left], vocab[right]
    return parts
