"""The outer step of DiLoCo: Nesterov momentum over what many updates of the inner optimizers did together.

Douillard and others, "DiLoCo: Distributed Low-Communication Training of Language Models", 2023,
https://arxiv.org/abs/2311.08105; with Muon inside: Thérien and others, "MuLoCo: Muon is a practical inner
optimizer for DiLoCo", 2025, https://arxiv.org/abs/2505.23725. One machine may take it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from cpulm.optim.eager import EagerOptimizer


class OuterStep(EagerOptimizer):
    """After every round of updates, a step from where the round began, along the way that it went.

    It is called as the last optimizer of every update and reads no gradients. With ``d`` the weights at the
    start of the round less those at its end, and velocity ``v``: ``v = momentum * v + d``, and the next round
    starts at ``start - lr * (d + momentum * v)``. With ``lr`` 1 and ``momentum`` 0 nothing changes.

    Args:
        params: the parameters that the other optimizers update, with the weights of the first round's start.
        every: updates in a round.
        lr: not scaled by the schedule, which the inner optimizers follow.
        momentum: of the rounds' differences, in Nesterov's form.

    Raises:
        ValueError: if there are no updates in a round.
    """

    def __init__(self, params: Iterable[Any], every: int, lr: float, momentum: float) -> None:
        if every < 1:
            raise ValueError(f"a round has at least one update, not {every}")
        super().__init__(params, {"every": every, "outer_lr": lr, "momentum": momentum})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {
                    "step": torch.zeros(()),
                    "anchor": p.detach().clone(),
                    "velocity": torch.zeros_like(p),
                }

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Count an update; at the end of a round change the weights. ``closure`` computes the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            states = [self.state[p] for p in group["params"]]
            torch._foreach_add_([state["step"] for state in states], 1.0)
            if states[0]["step"].item() % group["every"] == 0:
                self._end_round(group, states)
        return loss

    def _end_round(self, group: dict[str, Any], states: list[dict[str, Tensor]]) -> None:
        lr, momentum = group["outer_lr"], group["momentum"]
        for p, state in zip(group["params"], states, strict=True):  # one at a time: one difference in memory
            anchor, velocity = state["anchor"], state["velocity"]
            difference = anchor - p
            velocity.mul_(momentum).add_(difference)
            anchor.sub_(difference.add_(velocity, alpha=momentum), alpha=lr)
            p.copy_(anchor)
