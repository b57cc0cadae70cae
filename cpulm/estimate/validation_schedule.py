"""Decides after which updates a run validates: a pure function of the step. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cpulm.settings import Settings

_PASS_PART = 0.5
"""A text can be overfitted from its first repetition on: at first a validation at least each half pass."""
_GROWTH = 0.25
"""Then one at least each quarter of the updates so far: one is within a seventh of the best step."""
_MAX_COST = 0.05
"""The additional validations take at most about this part of the time between them."""
_FORWARD_COST = 0.7
"""Time of a validation's batch relative to an update's micro-batch: a third in fp32, twice that in int8."""
_COMPARED_PART, _FEWEST_COMPARED_TOKENS = 8, 8192
"""Trained and averaged weights are compared on this part of a validation's batches, but on so many tokens."""


@dataclass(frozen=True)
class ValidationSchedule:
    """Validations after each multiple of ``every`` updates, and more at first.

    A text that is seen many times has its best model after a few passes, which may all be within the first
    ``every`` updates. So ``every`` is halved while a gap is longer than half a pass and than a quarter of the
    updates so far, and as long as the additional validations cost little. The moments depend on the step
    alone, so that runs of the same seed compare, and a resumed run validates where it would have.

    Attributes:
        every: the longest gap, in updates.
        pass_updates: updates in one pass over the training text.
        cost_updates: the duration of a validation, in updates.
    """

    every: int
    pass_updates: float
    cost_updates: float

    def is_due(self, step: int) -> bool:
        """Whether a validation follows update number ``step``, counted from 1."""
        halvings = self._halvings(step)
        # Counted in parts of `every`, so that multiples of `every` are due whatever the part is.
        return step > 0 and (step << halvings) // self.every > ((step - 1) << halvings) // self.every

    def count(self, steps: int) -> int:
        """The validations of a run of ``steps`` updates, with the one that ends it."""
        validations = done = 0
        while done < steps:
            halvings = self._halvings(done + 1)
            last = steps if not halvings else math.ceil(self.every / 2 ** (halvings - 1) / _GROWTH) - 1
            last = min(steps, max(last, done + 1))
            validations += (last << halvings) // self.every - (done << halvings) // self.every
            done = last
        return validations + (not self.is_due(steps))

    def _halvings(self, step: int) -> int:
        """How often ``every`` is halved for the gaps around ``step``."""
        gap = max(_PASS_PART * self.pass_updates, _GROWTH * step)
        wanted = math.ceil(math.log2(self.every / gap))
        affordable = math.floor(math.log2(self.every / max(1.0, self.cost_updates / _MAX_COST)))
        return max(0, min(wanted, affordable))


def compared_every(settings: Settings, val_batches: int) -> int:
    """Return n: the trained and the averaged weights are compared on every n-th batch of a validation.

    Only the better ones are measured on the rest: a token of a validation, in fp32, takes as long as one of
    training in int8, and the difference on the same tokens is known much better than either loss.
    """
    tokens = val_batches * settings.train.micro_batch_size * settings.model.block_size
    return max(1, min(_COMPARED_PART, tokens // _FEWEST_COMPARED_TOKENS))


def batches_computed(settings: Settings, val_batches: int) -> float:
    """Return how many batches a validation computes: those on which weights are compared count twice."""
    averages = settings.train.average_fraction is not None
    return val_batches * (1.0 + averages / compared_every(settings, val_batches))


def validation_schedule(settings: Settings, train_tokens: int, val_batches: int) -> ValidationSchedule:
    """Return the schedule of a run.

    Args:
        train_tokens: in the training split.
        val_batches: micro-batches in one validation.
    """
    train = settings.train
    return ValidationSchedule(
        settings.eval.every,
        train_tokens / settings.tokens_per_step,
        batches_computed(settings, val_batches) * _FORWARD_COST / train.grad_accum_steps,
    )
