"""The part of an update's micro-batches that one of several processes computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cpulm.data.batches import TrainingBatches
from cpulm.data.loader import IGNORED
from cpulm.errors import SettingsError


@dataclass(frozen=True)
class BatchPiece:
    """Rows ``begin`` to ``end`` of micro-batch ``index``; all of them if ``end`` is None."""

    index: int
    begin: int = 0
    end: int | None = None

    def load(self, loader: TrainingBatches) -> tuple[Tensor, Tensor, float]:
        """Return inputs, targets, int64 [rows, T], and their share of the micro-batch's counted tokens."""
        x, y = loader.batch(self.index)
        if self.end is None:
            return x, y, 1.0
        part = y[self.begin : self.end]
        counted = int((y != IGNORED).sum())
        share = int((part != IGNORED).sum()) / counted if counted else 0.0
        return x[self.begin : self.end], part, share


def pieces_of(batches: Sequence[int], batch_size: int, rank: int, size: int) -> list[BatchPiece]:
    """Divide the rows of micro-batches equally and in order; return the pieces of process ``rank``.

    Args:
        batches: indices of the micro-batches in the loader.
        batch_size: rows in each.
        size: the number of processes.
    """
    rows = len(batches) * batch_size // size
    return rows_between(batches, batch_size, rank * rows, (rank + 1) * rows)


def rows_between(batches: Sequence[int], batch_size: int, first: int, last: int) -> list[BatchPiece]:
    """Return the pieces of the rows from ``first`` to before ``last``, counted over all micro-batches."""
    pieces = []
    for number, index in enumerate(batches):
        begin, end = max(0, first - number * batch_size), min(batch_size, last - number * batch_size)
        if begin < end:
            pieces.append(BatchPiece(index) if end - begin == batch_size else BatchPiece(index, begin, end))
    return pieces


def require_divisible(batch_size: int, grad_accum_steps: int, size: int) -> None:
    """Raise SettingsError if the rows of an update cannot be divided equally over ``size`` processes."""
    rows = batch_size * grad_accum_steps
    if rows % size:
        fits = [count for count in range(1, rows + 1) if rows % count == 0]
        below = max((count for count in fits if count < size), default=1)
        raise SettingsError(
            f"{size} processes cannot share an update of {rows} rows "
            f"(train.micro_batch_size {batch_size} x train.grad_accum_steps {grad_accum_steps}) equally",
            f"use {below} process{'es' * (below > 1)}, or --batch-size {-(-batch_size // size) * size}",
        )


def require_rows(rows: int, size: int) -> None:
    """Raise SettingsError if an update has fewer ``rows`` than there are processes."""
    if rows < size:
        raise SettingsError(
            f"an update of {rows} rows has none for some of {size} processes",
            f"use {rows} process{'es' * (rows > 1)}, or --batch-size {size}",
        )
