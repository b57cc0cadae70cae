"""Reports overfitting during the run, by the rule that `cpulm analyze` applies afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cpulm.checkpoints.train_state import TrainState
from cpulm.estimate.overfitting import Rise, risen_since
from cpulm.events import Listener, Notice


@dataclass
class OverfittingWatch:
    """Takes in each validation; emits one notice for each minimum from which the losses rise.

    Each generation of a run has its own. Only in the last one it is a warning: before it, the next one
    learns from the model at the minimum. A resumed run begins with the generation's best loss before it; its
    training loss at that step is not known, so its first minimum is compared with the training loss at the
    resume.

    Attributes:
        train_tokens: in the training split.
        generations: of the run.
    """

    emit: Listener
    train_tokens: int
    generations: int = 1
    _seen: list[tuple[int, float, float]] = field(default_factory=list, init=False)
    """Step, validation loss and mean training loss of each validation."""
    _reported: int | None = field(default=None, init=False)
    risen: bool = field(default=False, init=False)
    """Whether the last validation losses lie above their minimum by more than noise."""

    def validated(self, state: TrainState, loss: float) -> None:
        """Take in the validation loss (nats per token) at ``state.step``."""
        train_loss = state.losses.mean_loss
        if train_loss is None or not math.isfinite(loss):
            return
        best_step, best_loss = state.generation_best_step, state.generation_best_loss
        if not self._seen and best_loss is not None and best_step not in (None, state.step):
            self._seen.append((best_step or 0, best_loss, train_loss))
        self._seen = [seen for seen in self._seen if seen[0] < state.step]  # a rollback undid the others
        self._seen.append((state.step, loss, train_loss))
        best = risen_since([seen[1] for seen in self._seen])
        self.risen = best is not None
        if best is None or self._seen[best][0] == self._reported:
            return
        step, lowest, train_loss_then = self._seen[best]
        passes = state.tokens * state.generation_steps / state.step / self.train_tokens
        rise = Rise(step, lowest, loss, train_loss_then, train_loss, passes)
        self._reported = step
        if state.generation < self.generations and rise.overfits:
            message = f"{rise.finding()} The next generation learns from that model."
            self.emit(Notice(level="info", message=message))
        else:
            self.emit(Notice(level="warning", message=rise.describe()))
