"""Products of matrices rounded to int8, with everything between them, in compiled kernels.

A product takes a left factor [M, K] with a scale for each row and a right one [K, N] with a scale for each
column: the scales stay out of the sums, which are exact. The factors' layouts are the kernels' sums.
All tensors are contiguous float32 on the CPU unless said.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cpulm.native.arguments import f32, i64, ptr, ptrs, require_lanes, scratch, threads, u32

QUAD = 4
"""Bytes along the sum that meet in one instruction: what its length is rounded up to."""

_RIGHT = 0x80808080
_LEFT = 0


class Factor(NamedTuple):
    """One factor of a product.

    Attributes:
        values: its numbers in int8, as [M, K] or [K, N], though not in that order in memory.
        scale: [M] for a left factor, [N] for a right one.
        packed: of a left factor, whether it was made from columns.
    """

    values: Tensor
    scale: Tensor
    packed: bool = False


class MuonUpdate(NamedTuple):
    """What is done to every block of rows of a matrix.

    Attributes:
        block_rows: rows of a block.
        momentum: of the moving average.
        decay: part of itself that a weight loses.
        step_size: of the direction that is taken from the weights.
        iterations: of ``x = a x + (b G + c G G) x`` with G = x xᵀ, x being the direction at a norm of one.
        coefficients: a, b and c.
    """

    block_rows: int
    momentum: float
    decay: float
    step_size: float
    iterations: int
    coefficients: tuple[float, float, float]


class Int8Kernels:
    """The functions of one compiled library.

    Args:
        library: see :class:`cpulm.native.kernels.Kernels`.
        lanes: numbers in one of its vectors.
    """

    def __init__(self, library: ctypes.CDLL, lanes: int) -> None:
        self._library = library
        self.lanes = lanes

    def left(self, x: Tensor) -> Factor:
        """x [M, K] as a left factor."""
        return self._quantize(x, rows=True, columns=False)[0]

    def right(self, x: Tensor) -> Factor:
        """x [K, N] as a right factor."""
        return self._quantize(x, rows=False, columns=True)[1]

    def left_and_right(self, x: Tensor) -> tuple[Factor, Factor]:
        """x [M, K] as a left factor, and as a right one [M, K] of products that sum over M."""
        return self._quantize(x)

    def left_both(self, x: Tensor) -> tuple[Factor, Factor]:
        """x [M, K] as a left factor, and its transpose [K, M] as one."""
        rows, columns = self._quantize(x, flip=_LEFT)
        return rows, Factor(columns.values.t(), columns.scale, packed=True)

    def right_both(self, x: Tensor) -> tuple[Factor, Factor]:
        """The transpose [K, M] of x [M, K] as a right factor, and x itself as one."""
        rows, columns = self._quantize(x)
        return self.transposed_right(rows), columns

    def transposed_right(self, factor: Factor) -> Factor:
        """The transpose [K, M] of a left factor [M, K] as a right one, with the same scale."""
        values = factor.values
        require_lanes(values.mT, self.lanes)
        rows, width = values.shape
        out = values.new_empty(width, rows)
        self._library.cpulm_pack_transposed(ptr(values), i64(rows), i64(width), ptr(out), threads())
        return Factor(out, factor.scale)

    def pack_into(self, out: Tensor, values: Tensor, start: int) -> None:
        """Put int8 ``values`` [M, N] into the rows of ``out`` [K, N] from ``start`` on.

        ``out`` is the transpose of a left factor [N, K], in the kernels' order.

        Raises:
            ValueError: where ``start`` or K is no whole number of quads, or the rows do not fit in.
        """
        rows, width = values.shape
        require_lanes(values, self.lanes)
        if start % QUAD or out.size(0) % QUAD or out.size(1) != width or start + rows > out.size(0):
            raise ValueError(f"{rows} rows of {width} from {start} on do not fit into {list(out.shape)}")
        self._library.cpulm_pack_rows(
            ptr(values), i64(rows), i64(width), ptr(out), i64(out.size(0) // QUAD), i64(start // QUAD),
            u32(_LEFT), threads(),
        )  # fmt: skip

    def product(
        self,
        left: Factor,
        right: Factor,
        bias: Tensor | None = None,
        *,
        out: Tensor | None = None,
        add: bool = False,
    ) -> Tensor:
        """``left right + bias`` [M, N], written to ``out``, or, with ``add``, added to what stands there.

        Raises:
            ValueError: where the factors do not fit together, or the vectors do not divide N.
        """
        rows, depth = left.values.shape
        cols = right.values.size(1)
        if depth != right.values.size(0) or depth % QUAD or (out is not None and out.shape != (rows, cols)):
            raise ValueError(f"[{rows}, {depth}] times {list(right.values.shape)} is no product")
        if out is None:
            out = left.scale.new_empty(rows, cols)
        require_lanes(out, self.lanes)
        stored = left.values.t() if left.packed else left.values
        self._library.cpulm_int8_product(
            ptr(stored), ctypes.c_int(left.packed), ptr(right.values), i64(rows), i64(cols), i64(depth),
            ptr(left.scale), ptr(right.scale), ptr(bias), ptr(out), ctypes.c_int(add), None, ctypes.c_int(0),
            threads(),
        )  # fmt: skip
        return out

    def softmax(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Factor]:
        """Losses [M] in nats of logits [M, V], and their softmax as a left factor.

        Args:
            targets: [M] int64; where negative, loss and scale are 0, where V or more, the loss is NaN.
        """
        require_lanes(logits, self.lanes)
        rows, width = logits.shape
        losses, scale = logits.new_empty(rows), logits.new_empty(rows)
        by_row = torch.empty_like(logits, dtype=torch.int8)
        self._library.cpulm_softmax(
            ptr(logits), i64(rows), i64(width), ptr(targets), ptr(losses), ptr(by_row), ptr(scale), threads()
        )
        return losses, Factor(by_row, scale)

    def muon(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        averages: Sequence[Tensor],
        update: MuonUpdate,
    ) -> None:
        """Update matrices of one shape and their averages in place, as :class:`cpulm.optim.muon.Muon` does.

        The iteration's products are of int8. The diagonals of x xᵀ and of its polynomial are kept in float32:
        they are much larger than the rest.

        Raises:
            ValueError: where the vectors do not divide rows or columns, or the blocks the rows.
        """
        rows, cols = weights[0].shape
        if update.block_rows % self.lanes or rows % update.block_rows:
            raise ValueError(
                f"{rows} rows in blocks of {update.block_rows}: the kernels take multiples of {self.lanes}"
            )
        require_lanes(weights[0], self.lanes)
        self._library.cpulm_muon(
            ptrs(weights), ptrs(gradients), ptrs(averages), i64(len(weights)),
            i64(rows // update.block_rows), i64(update.block_rows), i64(cols), f32(update.momentum),
            f32(update.decay), f32(update.step_size), ctypes.c_int(update.iterations),
            *map(f32, update.coefficients), threads(),
        )  # fmt: skip

    def _quantize(
        self, x: Tensor, *, rows: bool = True, columns: bool = True, flip: int = _RIGHT
    ) -> tuple[Factor, Factor]:
        """x [M, K] by row as a left factor, and by column as what ``flip`` makes of it, [M, K]."""
        require_lanes(x, self.lanes)
        M, K = x.shape
        by_row = torch.empty(M if rows else 0, K, dtype=torch.int8)
        by_column = torch.empty(whole_quads(M) if columns else 0, K, dtype=torch.int8)
        row_scale, column_scale, sums = x.new_empty(M), x.new_empty(K), scratch(K)
        self._library.cpulm_quantize(
            ptr(x), i64(M), i64(K), ptr(by_row) if rows else None, ptr(row_scale),
            ptr(by_column) if columns else None, ptr(column_scale), u32(flip), ptr(sums), threads(),
        )  # fmt: skip
        return Factor(by_row, row_scale), Factor(by_column, column_scale)


def whole_quads(depth: int) -> int:
    """``depth`` rounded up to what a product can sum over."""
    return (depth + QUAD - 1) // QUAD * QUAD
