"""A moving average of the weights, which often generalizes better than the weights themselves.

The average is over a part of the run, as the power-function average of Karras et al., "Analyzing and
Improving the Training Dynamics of Diffusion Models", 2024, https://arxiv.org/abs/2312.02696, section 3.1: one
setting serves runs of any length, and the horizon need not be known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

EVERY = 8
"""The fewest updates between two steps of the average, which is a pass over the memory of both."""


class WeightAverage:
    """The average of the weights of ``model`` over about the last ``fraction`` of its updates.

    The weights after update ``s`` count in proportion to ``s ** (1 / fraction - 1)``, so with a fraction of
    0.1 they are on average about a tenth of the run old; with 1 all count equally.

    Args:
        model: on the device on which it is trained; its parameters must stay where they are.
        round_steps: updates in a round of several processes, which have the same weights only at its end.
    """

    def __init__(self, model: nn.Module, fraction: float, round_steps: int = 1) -> None:
        self._exponent, self._every = 1.0 / fraction, -(-EVERY // round_steps) * round_steps
        self._weights = model.state_dict()
        self._average = {name: weight.clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number ``step``, counted from 1; a pure function of these."""
        if step % self._every == 0:
            part = 1.0 - (1.0 - self._every / step) ** self._exponent
            torch._foreach_lerp_(list(self._average.values()), list(self._weights.values()), part)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, by the names in the model's own."""
        return self._average

    @torch.no_grad()
    def load_state_dict(self, stored: Mapping[str, Tensor]) -> None:
        """Continue from ``stored``; from the model's weights if it is empty: no average was kept before.

        Raises:
            KeyError: if a weight is missing.
            RuntimeError: if a shape differs.
        """
        source = stored or self._weights
        for name, average in self._average.items():
            average.copy_(source[name])

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Exchange the model's weights with the averaged ones, within the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.clone()
            weight.copy_(self._average[name])
            self._average[name].copy_(kept)
