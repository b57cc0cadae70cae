"""Detects that validation losses rise while training continues. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

FEWEST_VALIDATIONS = 4
_LEAST_RISE_NATS = 0.01


@dataclass(frozen=True)
class Rise:
    """A validation loss that has risen since its minimum, at step ``since_step``; losses in nats.

    ``train_loss_then`` and ``train_loss_now`` are means over the updates before the minimum and before now.
    """

    since_step: int
    best_loss: float
    last_loss: float
    train_loss_then: float
    train_loss_now: float
    passes: float

    @property
    def overfits(self) -> bool:
        """Whether the training loss fell meanwhile; if it did not, something else is wrong."""
        return self.train_loss_now < self.train_loss_then

    def finding(self) -> str:
        """Return the finding in words, if it is overfitting."""
        then, now = self.train_loss_then, self.train_loss_now
        return (
            f"Overfitting: {self._losses} kept falling, from {then:.3f} to {now:.3f}. The text was seen "
            f"{self.passes:.1f} times. best.pt is the model of step {self.since_step:,}."
        )

    @property
    def _losses(self) -> str:
        return (
            f"since step {self.since_step:,} the validation loss has risen from {self.best_loss:.4f} to "
            f"{self.last_loss:.4f}, while the training loss"
        )

    def describe(self) -> str:
        """Return the finding in words, with what would help."""
        if self.overfits:
            return (
                f"{self.finding()} More text, a smaller model, model.dropout, train.weight_decay or "
                "train.bpe_dropout would help."
            )
        then, now = self.train_loss_then, self.train_loss_now
        return (
            f"It got worse: {self._losses} did not fall either ({then:.3f} then, {now:.3f} now). This is not "
            "overfitting: check the learning rate. best.pt is the model to use."
        )


def risen_since(losses: Sequence[float]) -> int | None:
    """Return the index of the smallest loss if the last two both lie above it by more than noise; else None.

    Args:
        losses: finite validation losses in nats, in the order of their steps.
    """
    if len(losses) < FEWEST_VALIDATIONS:
        return None
    best = min(range(len(losses)), key=losses.__getitem__)
    if len(losses) - best <= 2:
        return None
    # Second differences of a smooth curve are its noise; the factor turns their median into a deviation.
    second = [abs(losses[i] - 2 * losses[i + 1] + losses[i + 2]) for i in range(len(losses) - 2)]
    noise = 1.4826 * median(second) / 6**0.5
    rise = min(losses[-2:]) - losses[best]
    return best if rise > max(_LEAST_RISE_NATS, 3 * noise) else None
