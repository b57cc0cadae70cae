"""The outer step of DiLoCo: Nesterov momentum over what many updates of the inner optimizers did together.

Douillard and others, "DiLoCo: Distributed Low-Communication Training of Language Models", 2023,
https://arxiv.org/abs/2311.08105; with Muon inside: Thérien and others, "MuLoCo: Muon is a practical inner
optimizer for DiLoCo", 2025, https://arxiv.org/abs/2505.23725. One machine may take it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from cpulm.optim.eager import EagerOptimizer

Average = Callable[[Sequence[Tensor], float, Sequence[Tensor]], list[Tensor]]
"""Averages float32 tensors of this process over all, with its weight; the third are what it has still to
send."""


class OuterStep(EagerOptimizer):
    """After every round of updates, a step from where the round began, along the way that it went.

    It is called as the last optimizer of every update and reads no gradients. With ``d`` the weights at the
    start of the round less those at its end, and velocity ``v``: ``v = momentum * v + d``, and the next round
    starts at ``start - lr * (d + momentum * v)``. With ``lr`` 1 and ``momentum`` 0 nothing changes.

    Args:
        params: the parameters that the other optimizers update, with the weights of the first round's start.
        every: updates in a round; 0: rounds end when :meth:`end_round` is called.
        lr: not scaled by the schedule, which the inner optimizers follow.
        momentum: of the rounds' differences, in Nesterov's form.
        average: of the difference over several processes, which then all start from the same weights.
    """

    def __init__(
        self, params: Iterable[Any], every: int, lr: float, momentum: float, average: Average | None = None
    ) -> None:
        super().__init__(params, {"every": every, "outer_lr": lr, "momentum": momentum})
        self._average = average
        self.state_names = {"step", "anchor", "velocity"} | ({"lost"} if average is not None else set())
        for group in self.param_groups:
            for p in group["params"]:
                state = {"step": torch.zeros(()), "anchor": p.detach().clone()}
                zeros = {name: torch.zeros_like(p) for name in self.state_names - state.keys()}
                self.state[p] = {**state, **zeros}

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
            if group["every"] and states[0]["step"].item() % group["every"] == 0:
                self.end_round()
        return loss

    @torch.no_grad()
    def end_round(self, weight: float = 1.0) -> None:
        """Take the outer step now.

        Args:
            weight: of this process in the average; those of all sum to 1.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        states = [self.state[p] for p in parameters]
        ways: Iterable[Tensor] = (state["anchor"] - p for p, state in zip(parameters, states, strict=True))
        if self._average is not None:
            ways = self._average(list(ways), weight, [state["lost"] for state in states])
        lr, momentum = self.defaults["outer_lr"], self.defaults["momentum"]
        for p, state, way in zip(parameters, states, ways, strict=True):
            anchor, velocity = state["anchor"], state["velocity"]
            velocity.mul_(momentum).add_(way)
            # Products and sums apart: fused ones round differently on different processors.
            anchor.sub_(way.add_(velocity * momentum).mul_(lr))
            p.copy_(anchor)
