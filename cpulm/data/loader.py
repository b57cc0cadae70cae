"""Batches from a split of tokens: shuffled for training, in order for validation.

``Loader.batch(i)`` is a pure function of the seed and ``i``, so there is no state to save, to restore or
to share between processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from cpulm.data.marked_text import unpack
from cpulm.data.random_bits import Words, splitmix64
from cpulm.data.split_tokens import TokenSplitter
from cpulm.data.tokenfile import require_block

Tokens: TypeAlias = npt.NDArray[Any]
Mask: TypeAlias = npt.NDArray[np.uint8]
IGNORED = -100
"""The target of padding, which cross entropy ignores."""

_ROUNDS = 4
_ROWS_AT_ONCE = 1024
"""Rows whose starts are computed together: a numpy call costs the same for one row as for hundreds."""
_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_FOLD, _UPPER = np.uint64(29), np.uint64(33)


class Loader:
    """Training batches, sampled without replacement.

    An epoch takes every window of ``block_size`` tokens once, in its own order. The windows are adjacent
    and begin at an offset that differs between epochs, so over the epochs the model sees each token at
    every position. Rows continue across the end of an epoch: every batch is full.

    Args:
        tokens: one split, 1-D, uint16 or uint32, usually a memory map.
        block_size: T, tokens per row.
        batch_size: B, rows per batch.
        seed: decides offsets and orders.
        mask: packed bits of the tokens that count in the loss, see :mod:`cpulm.data.tokenfile`; None: all.
        splitter: splits tokens of the rows at random; None: they stay as they are.

    Raises:
        SettingsError: if the split does not hold one block and the token after it.
    """

    def __init__(
        self,
        tokens: Tokens,
        block_size: int,
        batch_size: int,
        seed: int,
        mask: Mask | None = None,
        splitter: TokenSplitter | None = None,
    ) -> None:
        require_block("train", len(tokens), block_size)
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        # A plain array over the same memory: np.memmap turns every gather into a new memmap.
        self._tokens = np.asarray(tokens)
        self._mask = None if mask is None else np.asarray(mask)
        self._splitter = splitter
        self.windows = max(1, len(tokens) // block_size - 1)
        self._offsets = min(block_size, len(tokens) - self.windows * block_size)
        self._span = np.arange(block_size + 1)
        # A cache: the rows computed last, and which rows they are.
        self._known = (-1, np.zeros(0, dtype=np.int64))

    @property
    def batches_per_epoch(self) -> float:
        """Batches needed to take every window once."""
        return self.windows / self.batch_size

    def epoch(self, i: int) -> float:
        """How many epochs are complete before batch ``i``."""
        return i / self.batches_per_epoch

    def batch(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return batch ``i``: inputs and targets, int64 [B, T]; a target is the next token, -100 if
        it does not count."""
        places = self.starts(i)[:, None] + self._span
        taken = self._tokens[places].astype(np.int64)
        if self._splitter is not None:
            taken, origins = self._splitter.split(taken, i * self.batch_size)
            places = np.take_along_axis(places, origins, axis=1)
        # Copied by numpy: the same two copies by torch take three times as long.
        inputs, targets = taken[:, :-1].copy(), taken[:, 1:].copy()
        if self._mask is not None:
            targets[~unpack(self._mask, places[:, 1:])] = IGNORED
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def starts(self, i: int) -> npt.NDArray[np.int64]:
        """Where each row of batch ``i`` begins in the split, int64 [B]."""
        together = max(1, _ROWS_AT_ONCE // self.batch_size)
        block = i // together
        known, starts = self._known
        if block != known:
            starts = self._starts_of(block * together, together)
            self._known = (block, starts)
        at = (i - block * together) * self.batch_size
        return starts[at : at + self.batch_size]

    def _starts_of(self, i: int, count: int) -> npt.NDArray[np.int64]:
        """The starts of ``count`` batches from batch ``i`` on, concatenated."""
        rows = np.arange(i * self.batch_size, (i + count) * self.batch_size)
        epochs = rows // self.windows
        parts = [
            self._starts_in(epoch, rows[epochs == epoch] - epoch * self.windows)
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
        ]
        return np.concatenate(parts)

    def _starts_in(self, epoch: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        key = epoch_key(self.seed, epoch)
        return permuted(positions, self.windows, key) * self.block_size + key % self._offsets


def epoch_key(seed: int, epoch: int) -> int:
    """The key of the order of an epoch."""
    return splitmix64(splitmix64(seed) ^ epoch)


def permuted(positions: npt.NDArray[np.int64], n: int, key: int) -> npt.NDArray[np.int64]:
    """Map each of ``positions`` by a permutation of ``range(n)`` that ``key`` chooses.

    A Feistel network over a grid of about sqrt(n) x sqrt(n) cells that holds just over n cells; a
    position that lands outside is permuted again (Black and Rogaway, "Ciphers with Arbitrary Finite
    Domains", 2002). There is no table, so the cost per position does not depend on n.
    """
    side = max(1, math.isqrt(n))
    width, height = np.uint64(side), np.uint64(-(-n // side))
    keys = tuple(np.uint64(splitmix64(key + number)) for number in range(_ROUNDS))
    cells = _feistel_pass(positions.astype(np.uint64), width, height, keys)
    while (outside := cells >= n).any():
        cells[outside] = _feistel_pass(cells[outside], width, height, keys)
    return cells.astype(np.int64)


def val_batches(
    tokens: Tokens, block_size: int, batch_size: int, limit: int | None = None, mask: Mask | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield non-overlapping windows over a whole split: every token but the first is a target exactly once.

    Args:
        tokens: the split, 1-D.
        block_size: T.
        batch_size: B.
        limit: at most this many batches, spread evenly over the split; None: all of them.
        mask: as of :class:`Loader`.

    Returns:
        Pairs of inputs and targets, int64 [B, T]; incomplete last rows are padded with token 0 and
        target -100.

    Raises:
        SettingsError: if the split does not hold one block and the token after it.
    """
    require_block("val", len(tokens), block_size)
    flat, bits = np.asarray(tokens), None if mask is None else np.asarray(mask)
    total = val_batch_count(tokens, block_size, batch_size)
    taken = val_batch_count(tokens, block_size, batch_size, limit)
    return (_val_batch(flat, bits, k * total // taken, block_size, batch_size) for k in range(taken))


def val_batch_count(tokens: Tokens, block_size: int, batch_size: int, limit: int | None = None) -> int:
    """How many batches :func:`val_batches` yields."""
    total = math.ceil((len(tokens) - 1) / (block_size * batch_size))
    return total if limit is None else min(limit, total)


def _val_batch(
    tokens: Tokens, mask: Mask | None, k: int, block_size: int, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    span = block_size * batch_size
    inputs = np.zeros(span, dtype=np.int64)
    targets = np.full(span, IGNORED, dtype=np.int64)
    there = tokens[k * span : (k + 1) * span + 1]
    inputs[: len(there) - 1] = there[:-1]
    targets[: len(there) - 1] = there[1:]
    if mask is not None:
        places = np.arange(k * span + 1, k * span + len(there))
        targets[: len(places)][~unpack(mask, places)] = IGNORED
    shape = (batch_size, block_size)
    return torch.from_numpy(inputs.reshape(shape)), torch.from_numpy(targets.reshape(shape))


def _feistel_pass(cells: Words, width: np.uint64, height: np.uint64, keys: tuple[np.uint64, ...]) -> Words:
    """Apply the network once to cells of a ``width`` x ``height`` grid: a bijection.

    All in uint64, where products wrap.
    """
    left, right = cells // height, cells % height
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left = (left + _hash31(right + first)) % width
        right = (right + _hash31(left + second)) % height
    return left * height + right


def _hash31(values: Words) -> Words:
    """Hash each value to 31 bits: multiply, fold, multiply."""
    products = values * _MULTIPLIER
    bits: Words = (products ^ (products >> _FOLD)) * _MULTIPLIER >> _UPPER
    return bits
