"""Successive halving: at each rung only the better half continues (https://arxiv.org/abs/1502.07943)."""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST_RUNGS = 3
"""The first rung is at one eighth or later: before that, the warm-up decides and not the setting."""


@dataclass(frozen=True)
class Rung:
    """After this ``fraction`` of the training, ``keep`` trials continue."""

    fraction: float
    keep: int


def rungs(trials: int) -> tuple[Rung, ...]:
    """Return the rungs for ``trials``: at an eighth, a quarter and a half of the training, half continue."""
    levels = min(MOST_RUNGS, int(math.log2(trials))) if trials else 0
    found = []
    for level in range(levels, 0, -1):
        trials = math.ceil(trials / 2)
        found.append(Rung(0.5**level, trials))
    return tuple(found)


def rung_steps(steps: int, eval_every: int, looks: tuple[Rung, ...]) -> tuple[int, tuple[int, ...]]:
    """Return the updates between validations, at most about ``eval_every``, and the updates of the rungs.

    Every rung is at a validation, so all trials are compared after the same number of updates.
    """
    if not looks:
        return eval_every, ()
    first = max(1, round(steps * looks[0].fraction))
    every = max(1, first // math.ceil(first / eval_every))
    return every, tuple(every * max(1, round(steps * look.fraction / every)) for look in looks)
