"""Successive halving: all begin, and at each rung the better half goes on (https://arxiv.org/abs/1502.07943)."""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST_RUNGS = 3
"""The first rung is at an eighth at the earliest: before, the warm-up decides and not the setting."""


@dataclass(frozen=True)
class Rung:
    """After the ``fraction`` of the whole training, ``keep`` trials go on."""

    fraction: float
    keep: int


def rungs(trials: int) -> tuple[Rung, ...]:
    """Where ``trials`` are looked at, and how many go on: to a half, a quarter, an eighth of the training."""
    levels = min(MOST_RUNGS, int(math.log2(trials))) if trials else 0
    found = []
    for level in range(levels, 0, -1):
        trials = math.ceil(trials / 2)
        found.append(Rung(0.5**level, trials))
    return tuple(found)


def rung_steps(steps: int, eval_every: int, looks: tuple[Rung, ...]) -> tuple[int, tuple[int, ...]]:
    """Updates between validations, at most about ``eval_every``, and the updates of the rungs.

    Every rung is at a validation, so that the trials are compared after exactly as many updates each.
    """
    if not looks:
        return eval_every, ()
    first = max(1, round(steps * looks[0].fraction))
    every = max(1, first // math.ceil(first / eval_every))
    return every, tuple(every * max(1, round(steps * look.fraction / every)) for look in looks)
