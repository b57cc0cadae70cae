"""Linear layers with all three products in int8: several times as fast as fp32 on a CPU with VNNI.

Forward ``y = x wᵀ``, backward ``dx = dy w`` and ``dw = dyᵀ x``: every factor is quantized for its product,
with one scale for each row or column that the product does not sum over. The scales thus stay out of the
sums, and the int32 sums are exact for the rounded factors. Weights, updates and everything else stay in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cpulm.native.int8 import Factor

LARGEST = 127.0


class Quantizer(Protocol):
    """Quantizes matrices to int8 factors and multiplies them; see :class:`cpulm.native.int8.Int8Kernels`."""

    @property
    def lanes(self) -> int:
        """Widths of its matrices have to be multiples of this."""
        ...

    def left(self, x: Tensor) -> Factor: ...
    def left_and_right(self, x: Tensor) -> tuple[Factor, Factor]: ...
    def left_both(self, x: Tensor) -> tuple[Factor, Factor]: ...
    def right_both(self, x: Tensor) -> tuple[Factor, Factor]: ...
    def product(
        self,
        left: Factor,
        right: Factor,
        bias: Tensor | None = None,
        *,
        out: Tensor | None = None,
        add: bool = False,
    ) -> Tensor: ...


class TorchQuantizer:
    """With torch's own functions, for machines without a compiler."""

    lanes = 1

    def left(self, x: Tensor) -> Factor:
        """x [M, K] as a left factor."""
        return _rounded(x, 1)

    def left_and_right(self, x: Tensor) -> tuple[Factor, Factor]:
        """x [M, K] as a left factor, and as a right factor [M, K] for products that sum over M."""
        return _rounded(x, 1), _rounded(x, 0)

    def left_both(self, x: Tensor) -> tuple[Factor, Factor]:
        """x [M, K] as a left factor, and its transpose [K, M] as another left factor."""
        return _rounded(x, 1), _transposed(_rounded(x, 0))

    def right_both(self, x: Tensor) -> tuple[Factor, Factor]:
        """The transpose [K, M] of x [M, K] as a right factor, and x itself as another right factor."""
        return _transposed(_rounded(x, 1)), _rounded(x, 0)

    def product(
        self,
        left: Factor,
        right: Factor,
        bias: Tensor | None = None,
        *,
        out: Tensor | None = None,
        add: bool = False,
    ) -> Tensor:
        """``left right + bias`` [M, N] in float32, written to ``out`` or, with ``add``, added to it."""
        sums = torch._int_mm(left.values, right.values)
        scaled = sums.mul(left.scale.unsqueeze(1)).mul_(right.scale)
        if bias is not None:
            scaled.add_(bias)
        if out is None:
            return scaled
        return out.add_(scaled) if add else out.copy_(scaled)


def _rounded(x: Tensor, dim: int) -> Factor:
    """x quantized with one scale per row (``dim`` 1) or column (0), whose largest magnitude becomes 127."""
    scale = x.abs().amax(dim, keepdim=True).mul_(1 / LARGEST)
    return Factor((x / scale.clamp(min=1e-30)).round_().to(torch.int8), scale.squeeze(dim))


def _transposed(factor: Factor) -> Factor:
    return Factor(factor.values.t(), factor.scale)


def fits(quantizer: Quantizer, inputs: int, outputs: int) -> bool:
    """Whether ``quantizer`` can take a linear layer with these numbers of inputs and outputs."""
    return inputs % quantizer.lanes == 0 and outputs % quantizer.lanes == 0


def existing_gradient(weight: Tensor) -> Tensor | None:
    """The gradient of ``weight`` from earlier micro-batches, if a product can be added to it in place.

    That saves a matrix of the same size, and a pass that adds it.
    """
    grad = weight.grad if weight.is_leaf else None
    usable = grad is not None and grad.dtype is torch.float32 and grad.is_contiguous()
    return grad if usable else None


def linear(quantizer: Quantizer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x wᵀ + bias`` in int8, with gradients in int8.

    Args:
        x: [..., K] float32.
        weight: [N, K].
        bias: [N] or None.
    """
    apply: Callable[..., Tensor] = _Int8Linear.apply
    return apply(quantizer, x, weight, bias)


def frozen_weight(quantizer: Quantizer, weight: Tensor) -> Factor:
    """The transpose of ``weight`` [N, K] as a right factor, for :func:`frozen_linear`."""
    return quantizer.right_both(weight.detach())[0]


def frozen_linear(quantizer: Quantizer, x: Tensor, weight: Factor, bias: Tensor | None) -> Tensor:
    """As :func:`linear`, with a weight that was quantized once, and without gradients."""
    rows = x.detach().reshape(-1, x.size(-1)).contiguous()
    return quantizer.product(quantizer.left(rows), weight, bias).view(*x.shape[:-1], -1)


class _Int8Linear(torch.autograd.Function):
    """Saves x in int8, a quarter of its size; adds to an existing gradient of the weight in place.

    A frozen weight, beside which adapters are trained, has no gradient, and nothing is saved for it.
    """

    @staticmethod
    def forward(ctx: Any, quantizer: Quantizer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.size(-1)).contiguous()
        transposed, w_right = quantizer.right_both(weight)
        ctx.quantizer, ctx.shape, ctx.weight = quantizer, x.shape, weight
        if ctx.needs_input_grad[2]:
            x_left, x_right = quantizer.left_and_right(rows)
            ctx.save_for_backward(w_right.values, w_right.scale, x_right.values, x_right.scale)
        else:
            x_left = quantizer.left(rows)
            ctx.save_for_backward(w_right.values, w_right.scale)
        return quantizer.product(x_left, transposed, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor | None, Tensor | None]:
        quantizer: Quantizer = ctx.quantizer
        w_values, w_scale, *x_right = ctx.saved_tensors
        rows = grad.reshape(-1, grad.size(-1)).contiguous()
        bias_grad = rows.sum(0) if ctx.needs_input_grad[3] else None
        if not x_right:
            dx = quantizer.product(quantizer.left(rows), Factor(w_values, w_scale))
            return None, dx.view(ctx.shape), None, bias_grad
        g_left, g_transposed = quantizer.left_both(rows)
        dx = quantizer.product(g_left, Factor(w_values, w_scale))
        existing = existing_gradient(ctx.weight)
        dw = quantizer.product(g_transposed, Factor(*x_right), out=existing, add=existing is not None)
        return None, dx.view(ctx.shape), dw if existing is None else None, bias_grad
