"""Trouble in the numbers: what is not finite, and a loss that jumps up and stays there."""

from __future__ import annotations

import math

from cpulm.checkpoints.checkpoint import LossTracker

_MEMORY = 0.98
"""Of the running mean: it looks back over about fifty updates."""
SPIKE_UPDATES = 5
"""A single odd document makes one high loss; a run that has left its course has many in a row."""


def non_finite(loss: float, grad_norm: float) -> str | None:
    """Names the figure that is not finite; None where both are."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    return None


def follow(course: LossTracker, loss: float, spike_nats: float | None) -> str | None:
    """Note one update's loss in ``course``.

    Returns:
        What is wrong, once :data:`SPIKE_UPDATES` losses in a row lie more than ``spike_nats`` above the
        mean; else None.
    """
    mean = course.mean_loss
    if mean is not None and spike_nats is not None and loss > mean + spike_nats:
        course.high_updates += 1
        if course.high_updates < SPIKE_UPDATES:
            return None
        return f"the loss stayed {spike_nats:g} nats above its mean of {mean:.3f}; the last one is {loss:.3f}"
    course.high_updates = 0
    course.mean_loss = loss if mean is None else _MEMORY * mean + (1 - _MEMORY) * loss
    return None


def shifted(index: int, skipped: list[int]) -> int:
    """Which of the loader's batches is the ``index``-th of those not skipped.

    Args:
        skipped: numbers of batches to leave out, ascending.
    """
    for batch in skipped:
        if batch > index:
            break
        index += 1
    return index
