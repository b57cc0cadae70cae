"""Changes the number of threads during a run, to the fastest one beside the other programs on the machine.

The threads of a parallel region wait for the last one. If other programs use the same cores, one thread is
often without a core while all others wait for it: two threads beside two busy programs can be slower than
one. So while other programs are busy, numbers of threads are tried in turns on real updates, and the
fastest is kept for a while. The weights do not depend on it: the kernels add in an order that the number of
threads does not change, and whether torch's operations do as well is checked before the number is changed
for the first time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from cpulm.execution.rng import random_states, restore_random_states
from cpulm.execution.runtime import Runtime
from cpulm.execution.update import StepTimer, TrainingParts, accumulate_gradients
from cpulm.model.transformer import Transformer
from cpulm.system.cpu_use import OthersUse
from cpulm.system.openmp import ShortSpin

BUSY, CALM = 0.3, 0.15
"""Processors used by others from which on they count, and below which they no longer do."""
TRIAL_SECONDS, TRIAL_UPDATES, ROUNDS = 0.6, 3, 2
"""Each number is tried for so long and so many updates, so many times in turns."""
FIRST_HOLD_SECONDS, LONGEST_HOLD_SECONDS = 15.0, 120.0
"""How long the fastest number is kept until the next trial: longer when the last trial confirmed it."""


_Item = TypeVar("_Item")


def adaptive_threads(parts: TrainingParts, runtime: Runtime) -> AdaptiveThreads:
    """The threads of a run: ``runtime``'s number or fewer on a CPU, always its number on another device."""
    most = runtime.threads if runtime.device.type == "cpu" else 1
    return AdaptiveThreads(most, may_change=lambda: same_bits(parts, runtime, (1, most)))


def threads_for_model(model: Transformer) -> AdaptiveThreads:
    """The threads of work without gradients: torch's number or fewer, if the model uses the kernels."""
    return AdaptiveThreads(
        torch.get_num_threads() if model.head_weight.device.type == "cpu" else 1,
        may_change=lambda: model.attention_kernels is not None,
    )


def same_bits(parts: TrainingParts, runtime: Runtime, numbers: Sequence[int]) -> bool:
    """Whether a micro-batch has the same loss and gradients, bit for bit, with each number of threads.

    Threads, random state and gradients (none) are afterwards as before.
    """
    before, state = torch.get_num_threads(), random_states(runtime.device)
    found = set()
    try:
        for number in numbers:
            torch.set_num_threads(number)
            restore_random_states(state)
            loss = accumulate_gradients(parts, (0,), runtime, StepTimer())
            found.add((loss, *(_digest(p.grad) for p in parts.model.parameters() if p.grad is not None)))
            parts.zero_grad()
    finally:
        torch.set_num_threads(before)
        restore_random_states(state)
    return len(found) == 1


def _digest(gradient: Tensor) -> bytes:
    return hashlib.blake2b(gradient.contiguous().cpu().numpy().tobytes()).digest()


@dataclass
class _Trial:
    """Numbers of threads tried in turns; ``seconds`` and ``updates`` of each so far."""

    turns: list[int]
    seconds: dict[int, float] = field(default_factory=dict)
    updates: dict[int, int] = field(default_factory=dict)
    turn_seconds: float = 0.0
    turn_updates: int = 0

    def note(self, seconds: float) -> bool:
        """Count one update of the number whose turn it is; True when its turn is over."""
        number = self.turns[0]
        self.seconds[number] = self.seconds.get(number, 0.0) + seconds
        self.updates[number] = self.updates.get(number, 0) + 1
        self.turn_seconds += seconds
        self.turn_updates += 1
        if self.turn_seconds < TRIAL_SECONDS or self.turn_updates < TRIAL_UPDATES:
            return False
        del self.turns[0]
        self.turn_seconds, self.turn_updates = 0.0, 0
        return True

    def fastest(self) -> int:
        return min(self.seconds, key=lambda number: self.seconds[number] / self.updates[number])


class AdaptiveThreads:
    """Decides after every update how many threads the next one gets. Used from the thread that trains.

    Args:
        most: the number while the machine is calm.
        others: gives the processors that other programs use, or None when it is too early to say.
        spin: is switched to short spinning while others are busy.
        may_change: asked once, before the first trial. If it says no, the number stays.
        use: takes a number of threads over.
        now: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        most: int,
        *,
        others: Callable[[], float | None] | None = None,
        spin: Callable[[bool], None] | None = None,
        may_change: Callable[[], bool] = lambda: True,
        use: Callable[[int], None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = self.threads = most
        self._others = OthersUse().read if others is None else others
        self._spin = ShortSpin().switch if spin is None else spin
        self._use = torch.set_num_threads if use is None else use
        self._now, self._may_change = now, may_change
        self._fixed: bool | None = True if most == 1 else None
        self._busy = False
        self._trial: _Trial | None = None
        self._last_fastest: int | None = None
        self._kind = ""
        self._hold_seconds = FIRST_HOLD_SECONDS
        self._next_trial = 0.0

    def update_done(self, seconds: float, kind: str = "update") -> None:
        """Note that a piece of work took so long; the next one may get another number of threads.

        Args:
            seconds: of the piece. Pieces of one ``kind`` are alike, so that their times compare.
        """
        others = self._others()
        if others is not None:
            self._note_load(others)
        if not self._busy or self._fixed:
            return
        if kind != self._kind:
            self._kind, self._trial = kind, None
        if self._trial is not None:
            self._continue_trial(self._trial, seconds)
        elif self._now() >= self._next_trial:
            if self._fixed is None:
                self._fixed = not self._may_change()
            if not self._fixed:
                self._begin_trial()

    def each(self, items: Iterable[_Item], kind: str = "update") -> Iterator[_Item]:
        """The items, each with what is done with it counted as one piece of work of this ``kind``."""
        last = time.perf_counter()
        for item in items:
            yield item
            now = time.perf_counter()
            self.update_done(now - last, kind)
            last = now

    def __enter__(self) -> AdaptiveThreads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take all threads again, and the library's own spinning."""
        self._become_calm()

    def _note_load(self, others: float) -> None:
        if not self._busy and others >= BUSY:
            self._busy, self._hold_seconds, self._next_trial = True, FIRST_HOLD_SECONDS, 0.0
            self._spin(True)
        elif self._busy and others <= CALM:
            self._become_calm()

    def _become_calm(self) -> None:
        self._busy, self._trial = False, None
        self._take(self.most)
        self._spin(False)

    def _begin_trial(self) -> None:
        self._trial = _Trial([number for _ in range(ROUNDS) for number in self._thread_counts()])
        self._take(self._trial.turns[0])

    def _thread_counts(self) -> list[int]:
        """All, half as many, and so on down to one."""
        numbers = [self.most]
        while numbers[-1] > 1:
            numbers.append(numbers[-1] // 2)
        return numbers

    def _continue_trial(self, trial: _Trial, seconds: float) -> None:
        if not trial.note(seconds):
            return
        if trial.turns:
            self._take(trial.turns[0])
            return
        fastest, before = trial.fastest(), self._last_fastest
        longer = min(2 * self._hold_seconds, LONGEST_HOLD_SECONDS)
        self._hold_seconds = longer if fastest == before else FIRST_HOLD_SECONDS
        self._last_fastest, self._trial = fastest, None
        self._next_trial = self._now() + self._hold_seconds
        self._take(fastest)

    def _take(self, threads: int) -> None:
        if threads != self.threads:
            self.threads = threads
            self._use(threads)
