"""Norm, rotary embedding, SwiGLU and loss with as few passes over memory as torch's CPU functions allow.

Each public function is a formula. On a CPU in eager mode it runs as an autograd Function with a backward pass
written by hand; under torch.compile, under autocast and on other devices it is the plain formula, which is
fused there already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cpulm.model.counts import FEWEST_ROWS_IN_CHUNK, LOGITS_IN_CHUNK
from cpulm.model.distillation import (
    DistillationLoss,
    TeacherOutput,
    distillation_loss,
    mean_cross_entropy,
)
from cpulm.native import products

IGNORED = -100
"""A target that is excluded from the loss."""


FEW_NUMBERS = 1 << 14
"""Up to this many numbers, as for one generated token, a call costs more than its passes over memory."""


def can_fuse(x: Tensor) -> bool:
    """Whether the hand-written functions apply to ``x``."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def should_fuse(x: Tensor) -> bool:
    """Whether the hand-written functions are the faster ones for ``x``."""
    return can_fuse(x) and (torch.is_grad_enabled() or x.numel() > FEW_NUMBERS)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x²) + eps) * weight`` over the last dimension; any shape [..., D], weight [D]."""
    if should_fuse(x):
        y: Tensor = _apply(_FusedRMSNorm, x, weight, eps)
        return y
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: rotate each pair (x[d], x[d + D/2]) by its position's angle.

    Pairs are half the width apart, as in transformers' Qwen3 and Llama; the paper pairs neighbours.

    Args:
        x: [B, T, H, D].
        cos: [T, D / 2], as ``sin``.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if should_fuse(x):
        y: Tensor = _apply(_FusedRope, x, cos, sin)
        return y
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` for gate and up side by side in [..., 2 F]; gives [..., F]."""
    if should_fuse(gate_up):
        y: Tensor = _apply(_FusedSwiGLU, gate_up)
        return y
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


LowRankPair = tuple[Tensor, Tensor]
"""A [rank, inputs] and B [outputs, rank]."""


def add_low_rank(
    y: Tensor, x: Tensor, parts: Sequence[tuple[int, LowRankPair | None]], scale: float
) -> Tensor:
    """``y + scale * B A x``, where the columns of ``y`` are in parts with an A and a B each.

    Args:
        y: [..., outputs].
        x: [..., inputs].
        parts: the columns of each part, from left to right, and its A and B; None: nothing is added to it.
    """
    if can_fuse(x):
        matrices = [matrix for _, pair in parts for matrix in pair or (None, None)]
        widths = tuple(width for width, _ in parts)
        added: Tensor = _apply(_AddedLowRank, y, x, scale, widths, *matrices)
        return added
    pieces = [
        piece if pair is None else piece + F.linear(F.linear(x, pair[0]) * scale, pair[1])
        for piece, (_, pair) in zip(y.split([width for width, _ in parts], dim=-1), parts, strict=True)
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)


def head_loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of ``x @ weight.T`` against ``targets``, without the whole logits.

    Args:
        x: [N, D] outputs of the last norm.
        weight: [V, D].
        targets: [N] int64; -100 is excluded. Without any other target the loss is 0.
    """
    if _in_chunks(x, weight):
        return _chunked_head_loss(x, weight, targets, None).objective
    return mean_cross_entropy(F.linear(x, weight).float(), targets, IGNORED)


def distilled_head_loss(
    x: Tensor, weight: Tensor, targets: Tensor, teacher: TeacherOutput
) -> DistillationLoss:
    """The distillation loss of ``x @ weight.T``, without the whole logits; arguments as :func:`head_loss`."""
    if _in_chunks(x, weight):
        return _chunked_head_loss(x, weight, targets, teacher)
    return distillation_loss(F.linear(x, weight).float(), targets, teacher, IGNORED)


def _in_chunks(x: Tensor, weight: Tensor) -> bool:
    return can_fuse(x) and x.size(0) * weight.size(0) > LOGITS_IN_CHUNK


def _chunked_head_loss(
    x: Tensor, weight: Tensor, targets: Tensor, teacher: TeacherOutput | None
) -> DistillationLoss:
    with_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return DistillationLoss(*_apply(_ChunkedHeadLoss, x, weight, targets, with_grad, teacher))


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply``, which torch leaves untyped."""
    apply: Callable[..., Any] = function.apply
    return apply(*arguments)


class _FusedRMSNorm(torch.autograd.Function):
    """A third of the time of F.rms_norm, which takes 12 passes forward and backward.

    Measured at 3072 x 384 (2 cores, AVX-512, torch 2.13).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        rstd = norm.square_().mul_(1 / x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        y: Tensor = (x * rstd).mul_(weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        width = x.size(-1)
        # Layer norm's function with a mean of zero gives both gradients in one pass. It subtracts
        # rstd * mean(grad * weight) from grad_x, the gradient through the mean, which is added back here.
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [width], torch.zeros_like(rstd), rstd, weight, None, [True, True, False]
        )
        through_mean = (grad.reshape(-1, width) @ weight).view(rstd.shape).mul_(rstd).mul_(1 / width)
        return grad_x.add_(through_mean), grad_weight, None


class _FusedRope(torch.autograd.Function):
    """Writes both halves directly into the result; its gradient is the inverse rotation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        # One row of the tables per head, so that the inner loops run over the values of all heads.
        shape = (x.size(1), x.size(2), x.size(3) // 2)
        cos, sin = cos.expand(shape).contiguous(), sin.expand(shape).contiguous()
        ctx.save_for_backward(cos, sin)
        return _FusedRope.rotate(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _FusedRope.rotate(grad.contiguous(), cos, sin, -1.0), None, None

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        turned = torch.empty(x.shape, dtype=x.dtype)
        first, second = turned.chunk(2, dim=-1)
        torch.mul(a, cos, out=first).addcmul_(b, sin, value=-direction)
        torch.mul(b, cos, out=second).addcmul_(a, sin, value=direction)
        return turned


class _FusedSwiGLU(torch.autograd.Function):
    """Saves its input only, and writes both gradients into one tensor instead of concatenating two."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        grad_gate, grad_up = result.chunk(2, dim=-1)
        silu = F.silu(gate)
        torch.mul(grad, silu, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(torch.mul(grad, up, out=silu), gate, grad_input=grad_gate)
        return result


class _AddedLowRank(torch.autograd.Function):
    """Adds each part in its product's own pass; all parts share the passes over x and over its gradient.

    The gradient of B is computed as a product of wide rows. As torch's own operations it took several times
    as long: 17 ms to put two parts of 4096 x 1024 side by side, and 14 instead of 3 for B's gradient at rank
    8 (2 cores of an AMD EPYC, AVX-512, torch 2.13).
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, scale: float, widths: tuple[int, ...], *matrices: Tensor | None
    ) -> Tensor:
        rows, sums = x.reshape(-1, x.size(-1)), y.reshape(-1, y.size(-1)).clone()
        below = [b for b in matrices[1::2] if b is not None]
        above = torch.cat([a for a in matrices[::2] if a is not None])
        low = (rows @ above.t()).mul_(scale)
        ctx.scale = scale
        ctx.places = _places(widths, matrices[1::2])
        for b, (columns, ranks) in zip(below, filter(None, ctx.places), strict=True):
            sums[:, columns].addmm_(low[:, ranks], b.t())
        ctx.save_for_backward(rows, above, low, *below)
        return sums.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, above, low, *below = ctx.saved_tensors
        grads, d_low = grad.reshape(-1, grad.size(-1)), torch.empty_like(low)
        of_below = []
        for b, (columns, ranks) in zip(below, filter(None, ctx.places), strict=True):
            torch.mm(grads[:, columns], b, out=d_low[:, ranks])
            of_below.append((low[:, ranks].t() @ grads[:, columns]).t().contiguous())
        d_low.mul_(ctx.scale)
        of_above = iter((d_low.t() @ rows).split([b.size(1) for b in below]))
        pairs = iter(zip(of_above, of_below, strict=True))
        flat = [one for place in ctx.places for one in (next(pairs) if place else (None, None))]
        dx = (d_low @ above).view(*grad.shape[:-1], -1) if ctx.needs_input_grad[1] else None
        return grad, dx, None, None, *flat


def _places(widths: Sequence[int], below: Sequence[Tensor | None]) -> list[tuple[slice, slice] | None]:
    """For each part its columns of y and of all products with A; None if nothing is added to it."""
    places: list[tuple[slice, slice] | None] = []
    column = rank = 0
    for width, b in zip(widths, below, strict=True):
        ranks = 0 if b is None else b.size(1)
        found = slice(column, column + width), slice(rank, rank + ranks)
        places.append(found if ranks else None)
        column, rank = column + width, rank + ranks
    return places


class _ChunkedHeadLoss(torch.autograd.Function):
    """Head and loss for a few rows at a time, with the gradients computed while the logits are in the cache.

    Relative to linear and cross_entropy at 4096 tokens of width 256: 0.6 of the time and a quarter of the
    memory with a vocabulary of 4,096, 0.56 and a tenth with 32,000 (2 cores, AVX-512, torch 2.13). The idea:
    https://arxiv.org/abs/2410.10989.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        with_grad: bool,
        teacher: TeacherOutput | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = min(x.size(0), max(FEWEST_ROWS_IN_CHUNK, LOGITS_IN_CHUNK // weight.size(0)))
        logits, log_probs = x.new_empty(2, rows, weight.size(0)).unbind()
        grad_x = torch.empty_like(x) if with_grad else None
        grad_weight = torch.zeros_like(weight) if with_grad and ctx.needs_input_grad[1] else None
        cross_entropy, divergence = x.new_zeros(2).unbind()
        counted = (targets != IGNORED).sum().clamp_(min=1)
        for start in range(0, x.size(0), rows):
            some, wanted = x[start : start + rows], targets[start : start + rows]
            n = some.size(0)
            products.mm(some, weight.t(), out=logits[:n])
            torch.log_softmax(logits[:n], -1, out=log_probs[:n])
            cross_entropy += F.nll_loss(log_probs[:n], wanted, ignore_index=IGNORED, reduction="sum")
            ignored = wanted == IGNORED
            to_teacher = None
            if teacher is not None:
                taught = teacher.logits(slice(start, start + n))
                by_row, to_teacher = _towards(logits[:n], taught, teacher.temperature)
                divergence += by_row.masked_fill(ignored, 0.0).sum()
            if grad_x is not None:
                grad_logits = torch.exp(log_probs[:n], out=logits[:n])
                grad_logits[torch.arange(n), wanted.masked_fill(ignored, 0)] -= 1.0
                if teacher is not None and to_teacher is not None:
                    grad_logits *= 1 - teacher.weight
                    grad_logits.add_(to_teacher, alpha=teacher.weight * teacher.temperature)
                grad_logits[ignored] = 0.0
                products.mm(grad_logits, weight, out=grad_x[start : start + n])
                if grad_weight is not None:
                    products.mm(grad_logits.t(), some, out=grad_weight, add=True)
        if with_grad:
            ctx.save_for_backward(grad_x, grad_weight, counted)
        cross_entropy, divergence = cross_entropy / counted, divergence / counted
        ctx.mark_non_differentiable(cross_entropy, divergence)
        objective = cross_entropy.clone() if teacher is None else teacher.combined(cross_entropy, divergence)
        return objective, cross_entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_x, grad_weight, counted = ctx.saved_tensors
        scale = grad / counted
        return grad_x * scale, None if grad_weight is None else grad_weight * scale, None, None, None


def _towards(logits: Tensor, taught: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The divergence from the teacher [n] of logits [n, V], and ``p_T - q_T`` [n, V]."""
    student = torch.log_softmax(logits / temperature, -1)
    taught = torch.log_softmax(taught / temperature, -1)
    q = taught.exp()
    divergence = torch.linalg.vecdot(q, taught.sub_(student))
    return divergence, student.exp_().sub_(q)
