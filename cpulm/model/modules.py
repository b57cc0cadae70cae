"""Torch's layers, computed by the compiled kernels and in int8 if the model uses them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpulm.layer_shapes import LinearShape
from cpulm.model import fused, int8_linear, native_ops
from cpulm.model.int8_linear import Quantizer
from cpulm.native import products
from cpulm.native.blocks import BlockMatrix
from cpulm.native.int8 import Factor
from cpulm.native.kernels import Kernels
from cpulm.settings import ModelSettings


class Linear(nn.Linear):
    """``nn.Linear`` whose weights begin as zeros: ``Transformer.init_weights`` draws them.

    With a ``quantizer``, training runs its products in int8; without gradients they stay in fp32, but for the
    weight of a teacher, which is ``frozen`` as an int8 factor, and with a cache for a weight in ``blocks`` of
    int8. What an ``adapter`` computes is added; see :mod:`cpulm.model.lora`.
    """

    quantizer: Quantizer | None = None
    frozen: Factor | None = None
    blocks: BlockMatrix | None = None

    def __init__(self, shape: LinearShape, *, bias: bool) -> None:
        super().__init__(shape.inputs, shape.outputs, bias=bias)
        self.matrix_rows = shape.matrix_rows
        self.adapter: nn.Module | None = None

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def freeze(self) -> None:
        """Quantize the weight, if the products are in int8, because it will not change any more."""
        if self.quantizer is not None:
            self.frozen = int8_linear.frozen_weight(self.quantizer, self.weight)

    def forward(self, input: Tensor, *, cached: bool = False) -> Tensor:
        """input [..., inputs]; ``cached``: of a forward pass with a cache."""
        y = self.blocks.product(input, self.bias) if cached and self.blocks else self._product(input)
        return y if self.adapter is None else self.adapter(y, input)

    def _product(self, input: Tensor) -> Tensor:
        if self.quantizer is not None and self.frozen is not None:
            return int8_linear.frozen_linear(self.quantizer, input, self.frozen, self.bias)
        if self.quantizer is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return int8_linear.linear(self.quantizer, input, self.weight, self.bias)
        return products.linear(input, self.weight, self.bias)


class Embedding(nn.Embedding):
    """``nn.Embedding`` whose weights begin as zeros: ``Transformer.init_weights`` draws them."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return F.embedding(input, self.weight)
        # A sparse gradient adds only its rows to an existing gradient: 0.5 ms instead of 8 for 32,000 x 256.
        existing = self.weight.grad is not None and self.weight.device.type == "cpu"
        return F.embedding(input, self.weight, sparse=existing)


class RMSNorm(nn.Module):
    """Scale to a root mean square of one over the last dimension (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.kernels: Kernels | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kernels is not None and native_ops.fits(self.kernels, x, x.size(-1)):
            return native_ops.rms_norm(self.kernels, x, self.weight, self.eps)
        return fused.rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """Torch's: its backward pass adds up the weight's gradient per thread, the kernels' per block of rows."""

    kernels: Kernels | None = None

    def forward(self, input: Tensor) -> Tensor:
        """input [..., n_embd]."""
        kernels = self.kernels
        if kernels is not None and native_ops.fits(kernels, input, input.size(-1)):
            return native_ops.layer_norm(kernels, input, self.weight, self.bias, self.eps)
        return super().forward(input)


def make_norm(settings: ModelSettings) -> nn.Module:
    """The norm of the residual stream, by the settings."""
    if settings.norm == "rmsnorm":
        return RMSNorm(settings.n_embd, settings.norm_eps)
    return LayerNorm(settings.n_embd, settings.norm_eps, bias=settings.bias)


class Dropout(nn.Dropout):
    """``nn.Dropout``, in training with the kernels if they fit: torch draws its mask in a single thread.

    That took a fifth of a step of the shape of the preset small (2 cores, AVX-512, torch 2.13).
    """

    kernels: Kernels | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., n_embd]."""
        kernels = self.kernels
        if kernels is not None and self.training and self.p and native_ops.fits(kernels, x, x.size(-1)):
            return native_ops.dropout(kernels, x, self.p)
        return super().forward(x)
