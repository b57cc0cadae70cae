"""Measures each weight matrix in an update: its norm, its gradient's norm, and the norm of the update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cpulm.events import LayerStats

_DIGITS = 4
"""Significant digits: a long run records many of these numbers, and they are only plotted."""


class LayerStatistics:
    """Measures the first update and every ``every``-th one, without changing it.

    All norms are Frobenius norms. Call :meth:`before_update` when the gradients are complete and not yet
    clipped, and :meth:`after_update` after the optimizers have stepped.

    Args:
        model: its matrices are measured, under their names without ``.weight``; norms, biases and frozen
            matrices are not.
        every: updates from one measurement to the next; 0 for none.
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.ndim == 2 and p.requires_grad]
        self._names = tuple(name.removesuffix(".weight") for name, _ in named)
        self._matrices: list[Tensor] = [p for _, p in named]
        self._every = every
        self._step = 0
        self._grad_norms: list[Tensor] = []
        self._before: list[Tensor] = []

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        """Keep the gradient norms and a copy of the weights, if update number ``step`` is measured."""
        self._step, self._grad_norms, self._before = step, [], []
        if not self._every or (step > 1 and step % self._every):
            return
        gradients = [p.new_zeros(()) if p.grad is None else p.grad for p in self._matrices]
        self._grad_norms = list(torch._foreach_norm(gradients))
        # The activations are freed by now, so a second copy of the weights does not raise the peak of memory.
        self._before = [p.clone() for p in self._matrices]

    @torch.no_grad()
    def after_update(self) -> LayerStats | None:
        """Return the statistics of the update; None if it is not measured."""
        if not self._before:
            return None
        torch._foreach_sub_(self._before, self._matrices)
        norms = [self._grad_norms, torch._foreach_norm(self._matrices), torch._foreach_norm(self._before)]
        self._grad_norms, self._before = [], []
        device = self._matrices[0].device
        # One transfer for all of them.
        table = torch.stack([norm.float().to(device) for row in norms for norm in row]).view(3, -1)
        grads, weights, moves = table.tolist()
        ratios = [move / weight if weight else 0.0 for move, weight in zip(moves, weights, strict=True)]
        return LayerStats(
            step=self._step,
            names=self._names,
            weight_norms=_rounded(weights),
            grad_norms=_rounded(grads),
            update_ratios=_rounded(ratios),
        )


def _rounded(values: list[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
