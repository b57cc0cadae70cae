"""Tells a run that has shared its processors for minutes what would share them better."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cpulm.command import typed
from cpulm.events import Listener, Notice
from cpulm.execution.adaptive_threads import AdaptiveThreads
from cpulm.settings import TrainSettings
from cpulm.units import format_duration

PATIENCE_SECONDS = 180.0
SHORTEST_UPDATE_SECONDS = 0.2
"""With one thread. Processes exchange gradients in every update, which shorter ones do not repay."""
THREADS = 2
"""Of these, two processes with one each were measured beside other programs (docs/performance.md)."""


@dataclass
class BusyWatch:
    """Counts the time in updates with one of two threads; says once that two processes may be faster.

    Two threads meet many times in an update, and wait each time for the one that another program has
    replaced. Two processes meet only at its end.

    Attributes:
        run: the folder.
        processes: of the run.
    """

    emit: Listener
    run: Path
    train: TrainSettings
    processes: int
    _seconds: float = field(default=0.0, init=False)

    def update_done(self, seconds: float, threads: AdaptiveThreads) -> None:
        """Take in an update that took ``seconds`` with ``threads``."""
        rows = self.train.micro_batch_size * self.train.grad_accum_steps
        if self.processes > 1 or threads.most != THREADS or rows % THREADS:
            return
        if not threads.is_held_down or seconds < SHORTEST_UPDATE_SECONDS:
            return
        before, self._seconds = self._seconds, self._seconds + seconds
        if before < PATIENCE_SECONDS <= self._seconds:
            self.emit(Notice(level="info", message=self._message()))

    def _message(self) -> str:
        return (
            f"other programs have left this run one of its {THREADS} threads for "
            f"{format_duration(PATIENCE_SECONDS)}; two processes wait less for each other, and keep more of "
            f"their speed: stop it and type `cpulm resume {typed(self.run)} --nproc {THREADS}`"
        )
