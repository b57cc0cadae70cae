"""Linear layers whose three products run in int8, several times as fast as in fp32 where the CPU has VNNI.

Forward ``y = x wᵀ``, backward ``dx = dy w`` and ``dw = dyᵀ x``: each factor is quantized anew with one scale
for every row or column that the product does not sum over, so that the scales leave the sum and an int32
product is exact but for that rounding. Weights, their updates and everything else stay in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGEST = 127.0


class Quantizer(Protocol):
    """What turns numbers into int8 and back; see :class:`cpulm.native.kernels.Kernels`."""

    @property
    def lanes(self) -> int:
        """What the widths of its matrices have to be multiples of."""
        ...

    def quantize_rows(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
    def rescale(
        self, sums: Tensor, row_scale: Tensor, column_scale: Tensor, bias: Tensor | None
    ) -> Tensor: ...


class TorchQuantizer:
    """Quantizing with torch's own functions, for machines without a compiler."""

    lanes = 1

    def quantize_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [M, K] as int8, and a scale for each row [M]."""
        scale = x.abs().amax(1, keepdim=True).mul_(1 / LARGEST)
        return (x / scale.clamp(min=1e-30)).round_().to(torch.int8), scale.squeeze(1)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [M, K] as int8 with a scale for each row [M], and with a scale for each column [K]."""
        scale = x.abs().amax(0).mul_(1 / LARGEST)
        return *self.quantize_rows(x), (x / scale.clamp(min=1e-30)).round_().to(torch.int8), scale

    def rescale(self, sums: Tensor, row_scale: Tensor, column_scale: Tensor, bias: Tensor | None) -> Tensor:
        """Int32 sums [M, N] as float32."""
        scaled = sums.mul(row_scale.unsqueeze(1)).mul_(column_scale)
        return scaled if bias is None else scaled.add_(bias)


def fits(quantizer: Quantizer, inputs: int, outputs: int) -> bool:
    """Whether ``quantizer`` can take a linear layer of so many inputs and outputs."""
    return inputs % quantizer.lanes == 0 and outputs % quantizer.lanes == 0


def linear(quantizer: Quantizer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x wᵀ + bias`` in int8, with gradients in int8.

    Args:
        x: [..., K] float32.
        weight: [N, K].
        bias: [N] or None.
    """
    apply: Callable[..., Tensor] = _Linear.apply
    return apply(quantizer, x, weight, bias)


class _Linear(torch.autograd.Function):
    """Keeps x in int8, a quarter of its size."""

    @staticmethod
    def forward(ctx: Any, quantizer: Quantizer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.size(-1)).contiguous()
        x_rows, x_row_scale, x_columns, x_column_scale = quantizer.quantize(rows)
        w_rows, w_row_scale, w_columns, w_column_scale = quantizer.quantize(weight)
        ctx.quantizer, ctx.shape, ctx.with_bias = quantizer, x.shape, bias is not None
        ctx.save_for_backward(x_columns, x_column_scale, w_columns, w_column_scale)
        y = quantizer.rescale(torch._int_mm(x_rows, w_rows.t()), x_row_scale, w_row_scale, bias)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor | None]:
        quantizer: Quantizer = ctx.quantizer
        x_columns, x_column_scale, w_columns, w_column_scale = ctx.saved_tensors
        rows = grad.reshape(-1, grad.size(-1)).contiguous()
        g_rows, g_row_scale, g_columns, g_column_scale = quantizer.quantize(rows)
        dx = quantizer.rescale(torch._int_mm(g_rows, w_columns), g_row_scale, w_column_scale, None)
        dw = quantizer.rescale(torch._int_mm(g_columns.t(), x_columns), g_column_scale, x_column_scale, None)
        bias_grad = rows.sum(0) if ctx.with_bias else None
        return None, dx.view(ctx.shape), dw, bias_grad
