"""The head and its loss with the three products in int8, as those of the blocks' linear layers.

With a vocabulary of thousands of entries the head takes a quarter of a small model's step in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cpulm.native.int8 import Int8Kernels

LOGITS_AT_ONCE = 1 << 22
"""In one chunk: 16 MiB."""

MOST_ROWS = 1 << 16
"""In one chunk: so many products of two int8 cannot leave an int32."""


def fits(kernels: Int8Kernels, weight: Tensor) -> bool:
    """Whether the kernels can take a head [V, D]."""
    return weight.size(0) % kernels.lanes == weight.size(1) % kernels.lanes == 0


def head_loss(kernels: Int8Kernels, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As :func:`cpulm.model.fused.head_loss`."""
    apply: Callable[..., Tensor] = _HeadLoss.apply
    return apply(kernels, x, weight, targets)


class _HeadLoss(torch.autograd.Function):
    """Computes the gradients at once, chunk by chunk of the rows.

    The gradient of the logits is the probabilities less one at the target. The ones would leave the
    probabilities few of the 8 bits, so they are applied apart, exactly. What is left is quantized once, by
    row: its scale goes with the products' other factor, or with their result.
    """

    @staticmethod
    def forward(ctx: Any, kernels: Int8Kernels, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        transposed, w_right = kernels.right_both(weight)
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        counted = targets >= 0
        ones = counted.to(x.dtype).unsqueeze(1)
        entries = targets.clamp(min=0)
        total = x.new_zeros(())
        even = torch.ones(weight.size(0))
        chunk = min(MOST_ROWS, max(64, LOGITS_AT_ONCE // weight.size(0)))
        for start in range(0, x.size(0), chunk):
            some = slice(start, start + chunk)
            logits = kernels.product(kernels.left(x[some]), transposed)
            losses, p = kernels.softmax(logits, targets[some])
            total += losses.sum()
            dx = kernels.product(p, w_right)
            torch.addcmul(dx, weight[entries[some]], ones[some], value=-1.0, out=grad_x[some])
            scaled = kernels.right(x[some] * p.scale.unsqueeze(1))
            kernels.product(kernels.turned_left(p.values, even), scaled, add_to=grad_weight)
        grad_weight.index_add_(0, entries, x * ones, alpha=-1.0)
        number = counted.sum()
        ctx.save_for_backward(grad_x, grad_weight, number)
        return total / number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None]:
        grad_x, grad_weight, number = ctx.saved_tensors
        scale = grad / number
        return None, grad_x * scale, grad_weight * scale, None
