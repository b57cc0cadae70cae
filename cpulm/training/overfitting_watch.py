"""Reports overfitting during the run, by the rule that `cpulm analyze` applies afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cpulm.checkpoints.train_state import TrainState
from cpulm.estimate.overfitting import Rise, risen_since
from cpulm.events import Listener, Notice


@dataclass
class OverfittingWatch:
    """Takes in each validation; emits one warning for each minimum from which the losses rise.

    A resumed run begins with the best loss before it; its training loss at that step is not known, so its
    first minimum is compared with the training loss at the resume.

    Attributes:
        train_tokens: in the training split.
    """

    emit: Listener
    train_tokens: int
    _seen: list[tuple[int, float, float]] = field(default_factory=list, init=False)
    """Step, validation loss and mean training loss of each validation."""
    _reported: int | None = field(default=None, init=False)

    def validated(self, state: TrainState, loss: float) -> None:
        """Take in the validation loss (nats per token) at ``state.step``."""
        train_loss = state.losses.mean_loss
        if train_loss is None or not math.isfinite(loss):
            return
        if not self._seen and state.best_loss is not None and state.best_step not in (None, state.step):
            self._seen.append((state.best_step or 0, state.best_loss, train_loss))
        self._seen = [seen for seen in self._seen if seen[0] < state.step]  # a rollback undid the others
        self._seen.append((state.step, loss, train_loss))
        best = risen_since([seen[1] for seen in self._seen])
        if best is None or self._seen[best][0] == self._reported:
            return
        step, best_loss, train_loss_then = self._seen[best]
        passes = state.tokens / self.train_tokens
        rise = Rise(step, best_loss, loss, train_loss_then, train_loss, passes)
        self._reported = step
        self.emit(Notice(level="warning", message=rise.describe()))
