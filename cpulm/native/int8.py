"""Int8 matrix products and what stands between them, in compiled kernels.

A product takes a left factor [M, K] with one scale per row and a right factor [K, N] with one scale per
column: the scales stay out of the sums, which are exact. The factors have the kernels' own memory layouts.
Unless stated otherwise, tensors are contiguous float32 on the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cpulm.native.arguments import ptr, ptr_or_null, ptrs, require_lanes, scratch
from cpulm.native.thread_pool import parts, working_threads

QUAD = 4
"""Bytes that one instruction multiplies and sums; a product's depth is rounded up to whole quads."""


class Factor(NamedTuple):
    """One factor of a product.

    Attributes:
        values: int8, [M, K] or [K, N]; in memory in the kernels' order.
        scale: [M] for a left factor, [N] for a right one.
        packed: whether a left factor is stored as panels of its transpose.
    """

    values: Tensor
    scale: Tensor
    packed: bool = False


class MuonUpdate(NamedTuple):
    """One update by Muon of every block of rows of a matrix.

    Attributes:
        block_rows: rows of a block.
        momentum: of the moving average.
        decay: weights are multiplied by ``1 - decay``.
        step_size: times the direction is subtracted from the weights.
        iterations: of ``x = a x + (b G + c G G) x`` with G = x xᵀ, from the direction scaled to norm 1.
        coefficients: a, b and c.
    """

    block_rows: int
    momentum: float
    decay: float
    step_size: float
    iterations: int
    coefficients: tuple[float, float, float]


class Int8Kernels:
    """The int8 functions of one compiled library.

    Args:
        library: see :class:`cpulm.native.kernels.Kernels`.
        lanes: float32 numbers in one of its vectors.
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
        """x [M, K] as a left factor, and as a right factor [M, K] for products that sum over M."""
        return self._quantize(x)

    def left_both(self, x: Tensor) -> tuple[Factor, Factor]:
        """x [M, K] as a left factor, and its transpose [K, M] as another left factor."""
        rows, columns = self._quantize(x, right=False)
        return rows, Factor(columns.values.t(), columns.scale, packed=True)

    def right_both(self, x: Tensor) -> tuple[Factor, Factor]:
        """The transpose [K, M] of x [M, K] as a right factor, and x itself as another right factor."""
        rows, columns = self._quantize(x)
        return self.transposed_right(rows), columns

    def transposed_right(self, factor: Factor) -> Factor:
        """The transpose [K, M] of a left factor [M, K] as a right factor with the same scale."""
        values = factor.values
        rows, width = values.shape
        require_lanes(rows, self.lanes)
        out = values.new_empty(width, rows)
        self._library.cpulm_pack_transposed(
            ptr(values, rows, width, dtype=torch.int8), rows, width, out.data_ptr(), parts()
        )
        return Factor(out, factor.scale)

    def pack_into(self, out: Tensor, values: Tensor, start: int) -> None:
        """Pack int8 ``values`` [M, N] into the rows of ``out`` [K, N] from ``start`` on.

        ``out`` is the transpose of a left factor [N, K], in the kernels' order.

        Raises:
            ValueError: if ``start`` or K is not a multiple of 4, or the rows do not fit.
        """
        rows, width = values.shape
        require_lanes(width, self.lanes)
        if (
            start < 0
            or start % QUAD
            or out.size(0) % QUAD
            or out.size(1) != width
            or start + rows > out.size(0)
        ):
            raise ValueError(f"{rows} rows of {width} from {start} on do not fit into {list(out.shape)}")
        self._library.cpulm_pack_rows(
            ptr(values, rows, width, dtype=torch.int8), rows, width, ptr(out, *out.shape, dtype=torch.int8),
            out.size(0) // QUAD, start // QUAD, False, parts(),
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
        """``left right + bias`` [M, N], written to ``out`` or, with ``add``, added to ``out``.

        Raises:
            ValueError: if the factors do not fit together, or the vectors do not divide N.
        """
        rows, depth = left.values.shape
        cols = right.values.size(1)
        if depth != right.values.size(0) or depth % QUAD or (out is not None and out.shape != (rows, cols)):
            raise ValueError(f"[{rows}, {depth}] times {list(right.values.shape)} is not a product")
        if out is None:
            out = left.scale.new_empty(rows, cols)
        require_lanes(cols, self.lanes)
        stored = left.values.t() if left.packed else left.values
        if left.packed:
            require_lanes(rows, self.lanes)
        self._library.cpulm_int8_product(
            ptr(stored, *stored.shape, dtype=torch.int8), left.packed,
            ptr(right.values, depth, cols, dtype=torch.int8), rows, cols, depth, ptr(left.scale, rows),
            ptr(right.scale, cols), ptr_or_null(bias, cols), ptr(out, rows, cols), add, None, False,
            parts(),
        )  # fmt: skip
        return out

    def softmax(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Factor]:
        """Losses [M] in nats of logits [M, V], and their softmax as a left factor.

        Args:
            targets: [M] int64; a negative one gives loss and scale 0, one of V or more the loss NaN.
        """
        rows, width = logits.shape
        require_lanes(width, self.lanes)
        losses, scale = logits.new_empty(rows), logits.new_empty(rows)
        by_row = torch.empty_like(logits, dtype=torch.int8)
        self._library.cpulm_softmax(
            ptr(logits, rows, width),
            rows,
            width,
            ptr(targets, rows, dtype=torch.int64),
            losses.data_ptr(),
            by_row.data_ptr(),
            scale.data_ptr(),
            parts(),
        )
        return losses, Factor(by_row, scale)

    def distill(
        self, logits: Tensor, taught: Tensor, targets: Tensor, weight: float, temperature: float
    ) -> tuple[Tensor, Factor]:
        """Losses of logits [M, V] beside a teacher's, and the distillation loss's gradient as a left factor.

        The losses are [2, M]: cross-entropy and KL(q_T || p_T), in nats. The factor is
        ``(1 - w) p + w T (p_T - q_T)``, see :mod:`cpulm.model.distillation`; without the ones at the targets.

        Args:
            logits: overwritten.
            taught: the teacher's logits [M, V]; overwritten.
            targets: [M] int64; a negative one gives losses and scale 0, one of V or more the loss NaN.
        """
        rows, width = logits.shape
        require_lanes(width, self.lanes)
        losses, scale = logits.new_empty(2, rows), logits.new_empty(rows)
        by_row = torch.empty_like(logits, dtype=torch.int8)
        self._library.cpulm_distill(
            ptr(logits, rows, width),
            ptr(taught, rows, width),
            rows,
            width,
            ptr(targets, rows, dtype=torch.int64),
            weight,
            temperature,
            losses.data_ptr(),
            by_row.data_ptr(),
            scale.data_ptr(),
            parts(),
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

        The iteration's products are in int8. The diagonals of x xᵀ and of its polynomial stay in float32,
        because they are much larger than the rest.

        Raises:
            ValueError: if the vectors do not divide rows or columns, or the blocks the rows.
        """
        rows, cols = weights[0].shape
        if update.block_rows < 1 or update.block_rows % self.lanes or rows % update.block_rows:
            raise ValueError(
                f"{rows} rows in blocks of {update.block_rows}: the kernels take multiples of {self.lanes}"
            )
        require_lanes(cols, self.lanes)
        if not len(weights) == len(gradients) == len(averages):
            raise ValueError(f"{len(weights)} weights, {len(gradients)} gradients, {len(averages)} averages")
        blocks = rows // update.block_rows
        used = working_threads()
        size = self._library.cpulm_muon_workspace(len(weights) * blocks, update.block_rows, cols, used)
        memory = scratch(size, dtype=torch.uint8)
        self._library.cpulm_muon(
            ptrs(weights, rows, cols), ptrs(gradients, rows, cols), ptrs(averages, rows, cols), len(weights),
            blocks, update.block_rows, cols, update.momentum, update.decay, update.step_size,
            update.iterations, *update.coefficients, memory.data_ptr(), used,
        )  # fmt: skip

    def _quantize(
        self, x: Tensor, *, rows: bool = True, columns: bool = True, right: bool = True
    ) -> tuple[Factor, Factor]:
        """x [M, K] by row as a left factor, and by column as a right one, or its transpose as a left one."""
        M, K = x.shape
        require_lanes(K, self.lanes)
        by_row = torch.empty(M if rows else 0, K, dtype=torch.int8)
        by_column = torch.empty(whole_quads(M) if columns else 0, K, dtype=torch.int8)
        row_scale, column_scale, sums = x.new_empty(M), x.new_empty(K), scratch(parts(), K)
        self._library.cpulm_quantize(
            ptr(x, M, K), M, K, by_row.data_ptr() if rows else None, row_scale.data_ptr(),
            by_column.data_ptr() if columns else None, column_scale.data_ptr(), right, sums.data_ptr(),
            len(sums),
        )  # fmt: skip
        return Factor(by_row, row_scale), Factor(by_column, column_scale)


def whole_quads(depth: int) -> int:
    """``depth`` rounded up to whole quads."""
    return (depth + QUAD - 1) // QUAD * QUAD
