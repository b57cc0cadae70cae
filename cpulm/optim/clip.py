"""Clipping of the whole gradient by its norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float) -> float:
    """As ``torch.nn.utils.clip_grad_norm_``, but without its pass over the gradients when nothing is clipped.

    Args:
        parameters: those without a gradient are ignored.
        limit: the largest norm that is not clipped; 0: no limit.

    Returns:
        The norm of all gradients together before clipping; may be infinite or not a number.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if limit and norm > limit:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
    return norm
