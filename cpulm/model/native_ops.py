"""The compiled kernels as differentiable functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cpulm.native.kernels import AttentionShape, Kernels, QKTransform


def fits(kernels: Kernels | None, x: Tensor, width: int) -> bool:
    """Whether the kernels can take ``x``; vectors have to divide ``width``, the width of one of its parts."""
    return (
        kernels is not None
        and x.device.type == "cpu"
        and x.dtype is torch.float32
        and x.numel() > 0
        and width % kernels.lanes == 0
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def rms_norm(kernels: Kernels, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As :func:`cpulm.model.fused.rms_norm`."""
    return _apply(_NativeRMSNorm, kernels, x.contiguous(), weight, eps)


def layer_norm(kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """As ``F.layer_norm`` over the last dimension."""
    return _apply(_NativeLayerNorm, kernels, x.contiguous(), weight, bias, eps)


def swiglu(kernels: Kernels, gate_up: Tensor) -> Tensor:
    """As :func:`cpulm.model.fused.swiglu`."""
    return _apply(_NativeActivation, kernels.swiglu, kernels.swiglu_backward, gate_up.contiguous())


def relu2(kernels: Kernels, x: Tensor) -> Tensor:
    """``relu(x)²``."""
    return _apply(_NativeActivation, kernels.relu2, kernels.relu2_backward, x.contiguous())


def dropout(kernels: Kernels, x: Tensor, p: float) -> Tensor:
    """As ``F.dropout`` in training; torch's random state gives the seed."""
    return _apply(_NativeDropout, kernels, x.contiguous(), p, int(torch.randint(2**32, ())))


def attention(
    kernels: Kernels, qkv: Tensor, shape: AttentionShape, transform: QKTransform, first: Tensor | None = None
) -> Tensor:
    """QK norm, rotary embedding and causal attention of the joint projection.

    Args:
        qkv: [B, T, (H + 2 K) D], all query heads, then all key heads, then all value heads.
        first: [B, T] int32, the first token that each token attends to; None: token 0.

    Returns:
        [B, T, H D].
    """
    return _apply(
        _NativeAttention,
        kernels,
        qkv.contiguous(),
        transform.q_weight,
        transform.k_weight,
        shape,
        transform,
        first,
    )


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """``function.apply``, which torch leaves untyped."""
    apply: Callable[..., Tensor] = function.apply
    return apply(*arguments)


class _NativeDropout(torch.autograd.Function):
    """Saves the seed instead of a mask."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, p: float, seed: int) -> Tensor:
        ctx.kernels, ctx.p, ctx.seed = kernels, p, seed
        return kernels.dropout(x, p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor, None, None]:
        return None, ctx.kernels.dropout(dy.contiguous(), ctx.p, ctx.seed), None, None


class _NativeRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, rstd = kernels.rms_norm(x, weight, eps)
        ctx.kernels = kernels
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None]:
        dx, weight_grad = ctx.kernels.rms_norm_backward(grad.contiguous(), *ctx.saved_tensors)
        return None, dx, weight_grad, None


class _NativeLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> Tensor:
        y, mean, rstd = kernels.layer_norm(x, weight, bias, eps)
        ctx.kernels, ctx.has_bias = kernels, bias is not None
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor | None, None]:
        dx, weight_grad, bias_grad = ctx.kernels.layer_norm_backward(grad.contiguous(), *ctx.saved_tensors)
        return None, dx, weight_grad, bias_grad if ctx.has_bias else None, None


class _NativeActivation(torch.autograd.Function):
    """A function of one input and its gradient; saves only that input."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
    ) -> Tensor:
        ctx.gradient = backward
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.gradient(grad.contiguous(), *ctx.saved_tensors)


class _NativeAttention(torch.autograd.Function):
    """Saves the projection, the output and one number per query; the backward pass computes scores again."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        qkv: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        shape: AttentionShape,
        transform: QKTransform,
        first: Tensor | None,
    ) -> Tensor:
        y, lse = kernels.attention(qkv, shape, transform, first)
        ctx.kernels, ctx.shape, ctx.transform, ctx.first = kernels, shape, transform, first
        ctx.save_for_backward(qkv, y, lse, q_weight, k_weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, y, lse, q_weight, k_weight = ctx.saved_tensors
        dqkv, weight_grads = ctx.kernels.attention_backward(
            grad.contiguous(), qkv, y, lse, ctx.shape, ctx.transform, ctx.first
        )
        q_grad = None if q_weight is None else weight_grads[0]
        k_grad = None if k_weight is None else weight_grads[1]
        return None, dqkv, q_grad, k_grad, None, None, None
