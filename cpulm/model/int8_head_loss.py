"""The head and its loss with all three products in int8, like the blocks' linear layers.

With a vocabulary of thousands of entries, the head takes a quarter of a small model's step in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cpulm.model.counts import (
    FEWEST_ROWS_IN_CHUNK,
    INT8_LOGITS_IN_CHUNK,
    INT8_PROBABILITIES_AT_ONCE,
)
from cpulm.model.distillation import DistillationLoss, TeacherOutput
from cpulm.model.int8_linear import existing_gradient
from cpulm.native.int8 import QUAD, Factor, Int8Kernels, whole_quads

MOST_ROWS = 1 << 16
"""The sum of this many products of two int8 numbers fits into an int32."""


def fits(kernels: Int8Kernels, weight: Tensor) -> bool:
    """Whether the kernels can take a head [V, D]."""
    return weight.size(0) % kernels.lanes == weight.size(1) % kernels.lanes == 0


def head_loss(kernels: Int8Kernels, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As :func:`cpulm.model.fused.head_loss`."""
    return _losses(kernels, x, weight, targets, None).objective


def distilled_head_loss(
    kernels: Int8Kernels, x: Tensor, weight: Tensor, targets: Tensor, teacher: TeacherOutput
) -> DistillationLoss:
    """As :func:`cpulm.model.fused.distilled_head_loss`."""
    return _losses(kernels, x, weight, targets, teacher)


def _losses(*arguments: Any) -> DistillationLoss:
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Int8HeadLoss.apply
    return DistillationLoss(*apply(*arguments))


class _Int8HeadLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass, in chunks of rows.

    The gradient of the logits is the probabilities, minus one at the target. In int8 the ones would leave the
    probabilities few of the 8 bits, so they are applied separately and exactly. The probabilities are
    quantized once, by row; their scale is multiplied into the products' other factor, or into the result. The
    last product for the head's gradient, most often the only one, is left to the backward pass: there the
    incoming factor is multiplied into its scales, which saves a pass over the gradient, and it is added in
    place to the gradient of earlier micro-batches. With a teacher, what is quantized in place of the
    probabilities is ``(1 - w) p + w T (p_T - q_T)``, and the ones are multiplied by ``1 - w``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Int8Kernels,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        teacher: TeacherOutput | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = kernels.right_both(weight)
        grad_x, grad_weight = torch.empty_like(x), None
        number = (targets >= 0).sum().clamp_(min=1)
        totals = x.new_zeros(2)
        at_once = _whole(INT8_PROBABILITIES_AT_ONCE // weight.size(0), min(MOST_ROWS, x.size(0)))
        for start in range(0, x.size(0), at_once):
            some = slice(start, min(start + at_once, x.size(0)))
            packed, right = _chunks(kernels, x, head, targets, number, totals, grad_x, teacher, some)
            if some.stop < x.size(0) and ctx.needs_input_grad[2]:
                grad_weight = kernels.product(packed, right, out=grad_weight, add=start > 0)
        ones = (targets >= 0).to(x.dtype).unsqueeze(1) / number
        if teacher is not None:
            ones *= 1 - teacher.weight
        entries = targets.clamp(min=0)
        grad_x.addcmul_(weight[entries], ones, value=-1.0)
        ctx.kernels, ctx.weight = kernels, weight
        ctx.save_for_backward(grad_x, grad_weight, *packed[:2], *right[:2], x * ones, entries)
        cross_entropy, divergence = (totals / number).unbind()
        ctx.mark_non_differentiable(cross_entropy, divergence)
        objective = cross_entropy.clone() if teacher is None else teacher.combined(cross_entropy, divergence)
        return objective, cross_entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[None, Tensor, Tensor | None, None, None]:
        grad_x, before, values, ones, right, scale, targeted, entries = ctx.saved_tensors
        if not ctx.needs_input_grad[2]:
            return None, grad_x * grad, None, None, None
        there = existing_gradient(ctx.weight)
        out = there
        if before is not None:
            out = before.mul_(grad) if there is None else there.addcmul_(before, grad)
        factors = Factor(values, ones, packed=True), Factor(right, scale * grad)
        grad_weight = ctx.kernels.product(*factors, out=out, add=out is not None)
        grad_weight.index_add_(0, entries, targeted * -grad)
        return None, grad_x * grad, grad_weight if there is None else None, None, None


def _chunks(
    kernels: Int8Kernels,
    x: Tensor,
    head: tuple[Factor, Factor],
    targets: Tensor,
    number: Tensor,
    totals: Tensor,
    grad_x: Tensor,
    teacher: TeacherOutput | None,
    rows: slice,
) -> tuple[Factor, Factor]:
    """Process some ``rows``: add their losses to ``totals``, write to ``grad_x`` what is quantized of it.

    Returns:
        The factors whose product is the quantized part of the head's gradient.
    """
    vocab, count = head[0].values.size(1), rows.stop - rows.start
    packed = torch.empty(whole_quads(count), vocab, dtype=torch.int8)
    scales = torch.empty(count, 1)
    chunk = _whole(INT8_LOGITS_IN_CHUNK // vocab, count)
    for start in range(0, count, chunk):
        part = slice(start, min(start + chunk, count))
        some = slice(rows.start + part.start, rows.start + part.stop)
        logits = kernels.product(kernels.left(x[some]), head[0])
        if teacher is None:
            by_row, p = kernels.softmax(logits, targets[some])
            losses = by_row.unsqueeze(0)
        else:
            taught = teacher.logits(some)
            losses, p = kernels.distill(logits, taught, targets[some], teacher.weight, teacher.temperature)
            del taught
        del logits  # else these would be held while those of the next chunk are made
        totals[: losses.size(0)] += losses.sum(-1)
        scales[part, 0] = p.scale / number
        kernels.product(p._replace(scale=scales[part, 0]), head[1], out=grad_x[some])
        kernels.pack_into(packed, p.values, start)
    return Factor(packed.t(), torch.ones(vocab), packed=True), kernels.right(x[rows] * scales)


def _whole(rows: int, most: int) -> int:
    """``rows`` in whole quads, at least :data:`FEWEST_ROWS_IN_CHUNK` and at most ``most`` rounded up."""
    return min(max(FEWEST_ROWS_IN_CHUNK, rows // QUAD * QUAD), whole_quads(most))
