"""Muon: momentum, orthogonalised before it updates the weights.

Keller Jordan and others, https://kellerjordan.github.io/posts/muon/. The iteration runs in float32,
because CPUs without bf16 instructions are several times slower in bf16, and in batches of all matrices of one
shape. If the model trains in int8, the products of the larger matrices are in int8 too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from cpulm.native.int8 import Int8Kernels, MuonUpdate
from cpulm.optim.batch_size import MUON_ELEMENTS_AT_ONCE
from cpulm.optim.eager import EagerOptimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration with the steepest slope at 0; singular values end at 0.7 to 1.2."""

ITERATIONS = 5
"""Four iterations save 18% of Muon's time and cost 0.02 nats of validation loss after 120 steps of a small
model (1.916 against 1.897); with the coefficients of Polar Express (https://arxiv.org/abs/2505.16932) 0.035
nats."""

SMALLEST_IN_INT8 = 500_000
"""The number of multiplications in ``x x^T`` from which int8 is used: 64 rows of 128. Time of an update
relative to fp32: 0.52 for 36 matrices of 64 x 192, 0.33 for 8 of 192 x 512, 0.27 for 12 of 384 x 1024 (2
cores, AVX-512 VNNI)."""


def orthogonalise(matrices: Tensor) -> Tensor:
    """Approximately replace the singular values of each matrix by ones: ``U S V^T`` gives ``U V^T``.

    Args:
        matrices: [N, rows, cols], any float dtype; the result does not depend on a matrix's scale.

    Returns:
        [N, rows, cols]; zero for a zero matrix.
    """
    wide = matrices.size(1) <= matrices.size(2)
    x = matrices if wide else matrices.mT  # the products x x^T are then of the smaller side
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x if wide else x.mT


class Muon(EagerOptimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay, for matrices only.

    Args:
        params: matrices [rows, cols], or groups of them. A group may set ``block_rows``: each block of
            this many rows is then orthogonalised by itself, as the heads of a fused projection are.
        lr: spectral norm of the update, times ``max(1, rows / cols) ** 0.5`` of a block.
        momentum: of the gradient's moving average.
        weight_decay: each update multiplies the weights by ``1 - lr * weight_decay``.
        kernels: update float32 matrices that fit, with int8 products; None: torch updates all.

    Raises:
        ValueError: if a parameter is not a matrix, or ``block_rows`` does not divide its rows.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        kernels: Int8Kernels | None = None,
    ) -> None:
        self._kernels = kernels
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "block_rows": None}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2 or p.size(0) % (group["block_rows"] or 1):
                    raise ValueError(
                        f"{list(p.shape)} is not a matrix of blocks of {group['block_rows']} rows"
                    )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every matrix that has a gradient; ``closure`` computes the loss again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update_all()
        return loss

    def _update_all(self) -> None:
        for group in self.param_groups:
            for matrices in alike(p for p in group["params"] if p.grad is not None):
                fitting = [p for p in matrices if self._fits_int8(p, group)]
                if fitting:
                    self._update_in_int8(fitting, group)
                rest = [p for p in matrices if not self._fits_int8(p, group)]
                for some in at_once(rest):
                    self._update(some, group)

    def _fits_int8(self, p: Tensor, group: dict[str, Any]) -> bool:
        kernels, grad = self._kernels, p.grad
        if kernels is None or grad is None or p.device.type != "cpu":
            return False
        rows, cols = group["block_rows"] or p.size(0), p.size(1)
        return (
            p.dtype is grad.dtype is torch.float32
            and p.is_contiguous()
            and grad.is_contiguous()
            and min(rows, cols) * rows * cols >= SMALLEST_IN_INT8
            and rows % kernels.lanes == cols % kernels.lanes == 0
        )

    def _update_in_int8(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        assert self._kernels is not None
        block_rows = group["block_rows"] or matrices[0].size(0)
        decay, step_size = decay_and_step_size(group, matrices[0])
        update = MuonUpdate(block_rows, group["momentum"], decay, step_size, ITERATIONS, COEFFICIENTS)
        gradients = [p.grad for p in matrices if p.grad is not None]
        self._kernels.muon(matrices, gradients, [self._average(p) for p in matrices], update)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """One update of ``matrices`` of one shape, with all their blocks in one batch."""
        rows, cols = matrices[0].shape
        block_rows = group["block_rows"] or rows
        directions = matrices[0].new_empty(len(matrices), rows, cols)
        for p, direction in zip(matrices, directions, strict=True):
            self._direct(p, group["momentum"], direction)
        updates = orthogonalise(directions.view(-1, block_rows, cols)).reshape(-1, rows, cols)
        decay, step_size = decay_and_step_size(group, matrices[0])
        torch._foreach_mul_(matrices, 1.0 - decay)
        torch._foreach_add_(matrices, updates.unbind(), alpha=-step_size)

    def _direct(self, p: Tensor, momentum: float, out: Tensor) -> None:
        """Write the gradient with Nesterov momentum to ``out``."""
        assert p.grad is not None
        average = self._average(p).lerp_(p.grad, 1.0 - momentum)
        torch.lerp(p.grad, average, momentum, out=out)

    def _average(self, p: Tensor) -> Tensor:
        """The gradient's moving average, the optimizer's only state."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        average: Tensor = state["momentum"]
        return average


def alike(matrices: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """``matrices`` of one shape together."""
    by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for matrix in matrices:
        by_shape[matrix.shape].append(matrix)
    return by_shape.values()


def at_once(matrices: list[Tensor]) -> Iterable[list[Tensor]]:
    """``matrices`` of one shape, in batches that are updated at once."""
    count = max(1, MUON_ELEMENTS_AT_ONCE // matrices[0].numel()) if matrices else 1
    return (matrices[start : start + count] for start in range(0, len(matrices), count))


def decay_and_step_size(group: dict[str, Any], matrix: Tensor) -> tuple[float, float]:
    """The weights are multiplied by ``1 - decay``, then ``step_size`` times the direction is subtracted."""
    rows, cols = group["block_rows"] or matrix.size(0), matrix.size(1)
    return group["lr"] * group["weight_decay"], group["lr"] * max(1.0, rows / cols) ** 0.5
