"""The learning rate over a run, as a pure function of where the run stands."""

from __future__ import annotations

import math
from typing import Literal

ScheduleKind = Literal["cosine", "wsd", "linear", "constant"]


def lr_scale(
    kind: ScheduleKind,
    step: int,
    progress: float,
    warmup_steps: int,
    decay_fraction: float,
    min_lr_ratio: float,
) -> float:
    """The fraction of the peak learning rate that update number ``step`` uses.

    The shape follows ``progress``, not the step, so that it ends when the run does, whatever the
    horizon is measured in (steps, tokens, epochs or time). Warm-up follows the step and multiplies it.

    Args:
        kind: ``cosine`` and ``linear`` fall from the start to the end; ``wsd`` (warm-up, stable, decay;
            https://arxiv.org/abs/2404.06395) stays at the peak, then falls linearly over the last
            ``decay_fraction``; ``constant`` stays.
        step: number of the update, from 0.
        progress: the part of the horizon that is done when the update starts, in [0, 1].
        warmup_steps: updates over which the rate rises linearly; the first one has
            ``1 / warmup_steps`` of it, number ``warmup_steps - 1`` all of it.
        decay_fraction: for ``wsd`` only, in (0, 1].
        min_lr_ratio: what the shape falls to at ``progress`` 1; without effect on ``constant``.

    Returns:
        A factor in [0, 1] for each group's peak learning rate.
    """
    progress = min(max(progress, 0.0), 1.0)
    if kind == "constant":
        shape = 1.0
    elif kind == "wsd":
        shape = _between(min_lr_ratio, min(1.0, (1.0 - progress) / decay_fraction))
    elif kind == "linear":
        shape = _between(min_lr_ratio, 1.0 - progress)
    else:
        shape = _between(min_lr_ratio, 0.5 * (1.0 + math.cos(math.pi * progress)))
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warmup * shape


def _between(low: float, part: float) -> float:
    """The value that is ``part`` of the way from ``low`` to 1."""
    return low + (1.0 - low) * part
