"""Muon: momentum whose matrices are orthogonalised before they are applied.

Keller Jordan and others, https://kellerjordan.github.io/posts/muon/. Iterated in float32, because CPUs
without bf16 instructions are several times slower in bf16, and batched over all matrices of one shape; or,
where a model trains in int8, with the products of the larger matrices in int8 too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from cpulm.native.int8 import Int8Kernels
from cpulm.optim.eager import EagerOptimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic Newton-Schulz with the steepest slope at zero; singular values end within about 0.7 .. 1.2."""

ITERATIONS = 5
"""Four lost 0.02 nats of validation loss after 120 steps of a small model (1.916 against 1.897), and four
with the coefficients of Polar Express (https://arxiv.org/abs/2505.16932) 0.035, for 18% less time in Muon."""

SMALLEST_IN_INT8 = 1_000_000
"""Multiplications in ``x x^T`` from which on int8 is used: 64 rows of 256. Several matrices of 64 x 384 took
0.55 times as long as in fp32, 192 x 512 0.35 times, 384 x 1024 0.3 times (2 cores with AVX-512 VNNI)."""

ELEMENTS_AT_ONCE = 1 << 22
"""Elements in one batch of matrices: enough to keep the products busy, and no second copy of the model."""


def orthogonalise(matrices: Tensor, kernels: Int8Kernels | None = None) -> Tensor:
    """Replace the singular values of each matrix by ones, approximately: ``U S V^T`` gives ``U V^T``.

    Args:
        matrices: [N, rows, cols], any float dtype; each one is independent of the others and of its scale.
        kernels: where given, products of float32 matrices that fit are of rows and columns in int8.

    Returns:
        [N, rows, cols]; zero where the matrix is zero.
    """
    wide = matrices.size(1) <= matrices.size(2)
    x = matrices if wide else matrices.mT  # the products x x^T are then of the smaller side
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    if kernels is not None and _fits_int8(x, kernels):
        iterated: Tensor = x.contiguous()  # no view of the caller's: it was divided by its norm
        kernels.iterate(iterated, ITERATIONS, *COEFFICIENTS)
        return iterated if wide else iterated.mT
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x if wide else x.mT


def _fits_int8(x: Tensor, kernels: Int8Kernels) -> bool:
    rows, cols = x.shape[1:]
    return (
        x.dtype is torch.float32
        and x.device.type == "cpu"
        and rows * rows * cols >= SMALLEST_IN_INT8
        and rows % kernels.lanes == cols % kernels.lanes == 0
    )


class Muon(EagerOptimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay; for matrices only.

    Args:
        params: matrices [rows, cols], or groups of them. A group may say ``block_rows``: its matrices
            are then cut into blocks of so many rows, each orthogonalised by itself, as the heads of a
            fused projection are.
        lr: length of the update in spectral norm, times ``max(1, rows / cols) ** 0.5`` of a block.
        momentum: of the gradient's moving average.
        weight_decay: part of the weights, times ``lr``, that each update takes away.
        kernels: see :func:`orthogonalise`.

    Raises:
        ValueError: for a parameter that is no matrix, or whose rows ``block_rows`` does not divide.
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
                    raise ValueError(f"{list(p.shape)} is no matrix of blocks of {group['block_rows']} rows")

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every matrix that has a gradient; ``closure`` may compute the loss anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, matrices in alike.items():
                at_once = max(1, ELEMENTS_AT_ONCE // shape.numel())
                for start in range(0, len(matrices), at_once):
                    self._update(matrices[start : start + at_once], group)
        return loss

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """One update of ``matrices`` of equal shape, all their blocks in one batch."""
        rows, cols = matrices[0].shape
        block_rows = group["block_rows"] or rows
        directions = matrices[0].new_empty(len(matrices), rows, cols)
        for p, direction in zip(matrices, directions, strict=True):
            self._direct(p, group["momentum"], direction)
        updates = orthogonalise(directions.view(-1, block_rows, cols), self._kernels).reshape(-1, rows, cols)
        length = group["lr"] * max(1.0, block_rows / cols) ** 0.5
        torch._foreach_mul_(matrices, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, updates.unbind(), alpha=-length)

    def _direct(self, p: Tensor, momentum: float, out: Tensor) -> None:
        """Write the gradient after Nesterov momentum; the moving average is the optimizer's only state."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        average: Tensor = state["momentum"].lerp_(p.grad, 1.0 - momentum)
        torch.lerp(p.grad, average, momentum, out=out)
