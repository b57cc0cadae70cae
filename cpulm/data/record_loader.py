"""Batches of records: windows hold whole documents, which do not see each other.

A record is what the model computes for a document: the end-of-text token and the text as inputs, the text
and the end-of-text token as targets, from position 0. As in :mod:`cpulm.data.loader`, ``batch(i)`` is a pure
function of the seed and ``i``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from cpulm.data.loader import IGNORED, Tokens, epoch_key, permuted, windows_in_batches
from cpulm.data.marked_text import unpack
from cpulm.data.packing import documents_in, pack

Ints = npt.NDArray[np.int64]
Batch = tuple[torch.Tensor, torch.Tensor]

_ROW_KEY = 1


class PackedRecords:
    """The records of one split, packed into windows.

    Args:
        tokens: the split, 1-D, with the end-of-text token after each document.
        eot_id: that token.
        block_size: T; of longer documents only the first T tokens are used.
        mask: packed bits of the tokens that count in the loss; None: all.

    Attributes:
        windows: how many there are.
        cut: documents that are longer than a window.
        cut_tokens: tokens of these that are not used.
    """

    def __init__(
        self, tokens: Tokens, eot_id: int, block_size: int, mask: npt.NDArray[np.uint8] | None = None
    ) -> None:
        self.block_size = block_size
        self._tokens, self._eot_id = np.asarray(tokens), eot_id
        self._mask = None if mask is None else np.asarray(mask)
        self._begins, whole = documents_in(self._tokens, eot_id)
        self.lengths: Ints = np.minimum(whole, block_size)
        self.cut, self.cut_tokens = int((whole > block_size).sum()), int((whole - self.lengths).sum())
        places = pack(self.lengths, block_size)
        self._window_begins = places.begins
        self.windows = len(places.begins) - 1
        # The rank of each place, sorted by length: where it finds its document among the sorted ones.
        self._rank = np.empty(len(places.lengths), dtype=np.int64)
        self._rank[np.argsort(places.lengths, kind="stable")] = np.arange(len(places.lengths))

    def dealt(self, order: Ints) -> Ints:
        """The document in every place if those of equal length are dealt out in ``order``, [documents]."""
        dealt: Ints = order[np.argsort(self.lengths[order], kind="stable")][self._rank]
        return dealt

    def batch(self, windows: Ints, dealt: Ints) -> Batch:
        """Inputs and targets, int64 [B, T], of ``windows`` with the documents ``dealt``.

        What is left of a window is filled with end-of-text tokens that have no target.
        """
        begins, T = self._window_begins[windows], self.block_size
        counts = self._window_begins[windows + 1] - begins
        documents = dealt[_ranges(begins, counts)]
        lengths = self.lengths[documents]
        row = np.repeat(np.arange(len(windows)), counts)
        before = np.cumsum(lengths) - lengths  # tokens of the batch before each document
        in_row = before - before[np.cumsum(counts) - counts][row]
        source = _ranges(self._begins[documents], lengths)
        place = _ranges(row * T + in_row, lengths)
        inputs = np.full(len(windows) * T, self._eot_id, dtype=np.int64)
        targets = np.full(len(windows) * T, IGNORED, dtype=np.int64)
        targets[place] = self._tokens[source]
        inputs[place] = self._tokens[source - 1]
        inputs[row * T + in_row] = self._eot_id
        if self._mask is not None:
            targets[place[~unpack(self._mask, source)]] = IGNORED
        shape = (len(windows), T)
        return torch.from_numpy(inputs.reshape(shape)), torch.from_numpy(targets.reshape(shape))

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield every record once, ``batch_size`` windows at a time; arguments as of ``val_batches``."""
        dealt = self.dealt(np.arange(len(self.lengths)))
        for windows in windows_in_batches(self.windows, batch_size, limit):
            yield self.batch(windows, dealt)

    def batch_count(self, batch_size: int, limit: int | None = None) -> int:
        """How many batches :meth:`in_order` yields."""
        total = -(-self.windows // batch_size)
        return total if limit is None else min(limit, total)


class RecordLoader:
    """Training batches of records, with the same face as :class:`cpulm.data.loader.Loader`.

    An epoch takes every record once. Its windows and the documents in them are in an order of its own. Rows
    continue across the end of an epoch: every batch is full.

    Args:
        records: the training split.
        batch_size: B, windows per batch.
        seed: decides the orders.
    """

    def __init__(self, records: PackedRecords, batch_size: int, seed: int) -> None:
        self.block_size, self.batch_size, self.seed = records.block_size, batch_size, seed
        self.windows = records.windows
        self._records = records
        # A cache: the epoch dealt last, its documents and the order of its windows.
        self._known: tuple[int, Ints, Ints] = (-1, *2 * (np.zeros(0, dtype=np.int64),))

    @property
    def batches_per_epoch(self) -> float:
        """Batches needed to take every window once."""
        return self.windows / self.batch_size

    def epoch(self, i: int) -> float:
        """How many epochs are complete before batch ``i``."""
        return i / self.batches_per_epoch

    def batch(self, i: int) -> Batch:
        """Return batch ``i``: inputs and targets, int64 [B, T]; a target of -100 does not count."""
        rows = np.arange(i * self.batch_size, (i + 1) * self.batch_size)
        parts = []
        for epoch in range(int(rows[0]) // self.windows, int(rows[-1]) // self.windows + 1):
            dealt, order = self._dealt(epoch)
            parts.append(
                self._records.batch(order[rows[rows // self.windows == epoch] % self.windows], dealt)
            )
        if len(parts) == 1:
            return parts[0]
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    def _dealt(self, epoch: int) -> tuple[Ints, Ints]:
        if self._known[0] != epoch:
            key, count = epoch_key(self.seed, epoch), len(self._records.lengths)
            dealt = self._records.dealt(permuted(np.arange(count), count, key))
            order = permuted(np.arange(self.windows), self.windows, key + _ROW_KEY)
            self._known = (epoch, dealt, order)
        return self._known[1], self._known[2]


def _ranges(begins: Ints, counts: Ints) -> Ints:
    """``begins[0], begins[0] + 1, ...`` for each begin and its count, one after the other."""
    before = np.cumsum(counts) - counts
    ranges: Ints = np.repeat(begins - before, counts) + np.arange(int(counts.sum()))
    return ranges
