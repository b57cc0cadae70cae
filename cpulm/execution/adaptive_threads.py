"""Adapts the number of threads during a run to the load of other programs on the machine.

All threads of a parallel region wait for the slowest one. If other programs use the same cores, one thread
often has no core while all others wait for it: two threads beside two busy programs can be slower than one.
More threads than processors can be faster than both: while one waits for a processor, the others take its
share of the work, and the scheduler gives more time to more threads. While other programs are busy, several
thread counts are therefore tried in turns on real updates, and the fastest is used for a while. The weights
do not depend on the thread count: the kernels sum in an order that is independent of it. Whether torch's
operations are independent of it too is checked before the first change.
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
from cpulm.system.cpu_use import OthersUse, usable_processors
from cpulm.system.openmp import ShortSpin

BUSY, CALM = 0.3, 0.15
"""Processors that other programs use: at ``BUSY`` or more the search begins, at ``CALM`` or less it ends."""
TRIAL_SECONDS, TRIAL_UPDATES, ROUNDS = 0.8, 3, 3
"""Each turn takes at least this time and this many updates; each thread count has this many turns."""
_KEPT = 0.5
"""Of the weight of the last trial, in the next one: how fast a thread count is depends on how the scheduler
happens to place the threads, and one trial often finds another count than the next."""
FIRST_HOLD_SECONDS, LONGEST_HOLD_SECONDS = 15.0, 120.0
"""Time until the next trial: it doubles, up to the longest, each time that a trial confirms the result."""
ONE_THREADS_WORK = 1_500_000
"""Parameters times rows of a step of generation up to which one thread takes it: several mostly wait for each
other. On an AMD EPYC 1 and 2 threads wrote 3,875 and 3,692 tokens/s with 0.8 M parameters, 2,106 and 2,689
with 2.2 M."""

_Item = TypeVar("_Item")


def adaptive_threads(parts: TrainingParts, runtime: Runtime) -> AdaptiveThreads:
    """Return the adaptive threads of a run: ``runtime.threads`` on a CPU while it is calm, one elsewhere."""
    most = runtime.threads if runtime.device.type == "cpu" else 1
    others = OthersUse(runtime.others_of_run).read
    if parts.exchange is not None:  # an update lasts as long as that of the slowest process
        return AdaptiveThreads(most, others=others, may_change=lambda: False)
    counts = thread_counts(most)
    return AdaptiveThreads(most, others=others, may_change=lambda: same_bits(parts, runtime, counts))


def threads_for_model(model: Transformer, rows: int | None = None) -> AdaptiveThreads:
    """Return the adaptive threads of inference: at most torch's number; fixed if the model has no kernels.

    Args:
        rows: texts that are written at once, a token of each in a step; None: whole batches are computed.
    """
    most = torch.get_num_threads() if model.head_weight.device.type == "cpu" else 1
    is_small = rows is not None and rows * sum(p.numel() for p in model.parameters()) <= ONE_THREADS_WORK
    return AdaptiveThreads(
        1 if is_small else most, outside=most, may_change=lambda: model.attention_kernels is not None
    )


def thread_counts(most: int, processors: int | None = None) -> list[int]:
    """Return the thread counts to try beside busy programs: all, half as many, and so on down to one.

    If ``most`` are all the processors, half as many again are tried too. On an AMD EPYC (2 cores) the preset
    ``small`` in int8 kept 36 and 21 % of its speed with two threads beside two and four busy programs, 41 and
    32 % with three, 37 and 33 % with four.

    Args:
        processors: that this process may run on; None: as the system says.
    """
    counts = [most]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    is_all = most >= (usable_processors() if processors is None else processors)
    return [most * 3 // 2, *counts] if is_all and most > 1 else counts


def measured_as_in_a_run(
    measure: Callable[[], float],
    threads: int,
    *,
    others: Callable[[], float],
    spin: Callable[[bool], None] | None = None,
    use: Callable[[int], None] = torch.set_num_threads,
    processors: int | None = None,
) -> float:
    """Measure the seconds of a few updates with the threads that a run would take after a while.

    These are all threads; while other programs are busy, threads that spin briefly, and more of them or one
    if that is faster.

    Args:
        measure: runs updates and returns seconds.
        threads: that torch uses, and shall use afterwards.
        others: as :meth:`OthersUse.newest`, which may wait; not asked if there is one thread.
        spin, use, processors: as in :class:`AdaptiveThreads`.
    """
    if threads == 1 or others() < BUSY:
        return measure()
    switch = ShortSpin().switch if spin is None else spin
    switch(True)
    try:
        seconds = measure()
        counts = thread_counts(threads, processors)
        for number in sorted({1, max(counts)} - {threads}):
            use(number)
            seconds = min(seconds, measure())
        return seconds
    finally:
        use(threads)
        switch(False)


def same_bits(parts: TrainingParts, runtime: Runtime, numbers: Sequence[int]) -> bool:
    """Whether loss and gradients of a micro-batch are bit-identical for each number of threads.

    Restores the number of threads and the random state, and leaves no gradients.
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
    """The thread counts still to try, in ``turns``; ``seconds`` and ``updates`` of each so far."""

    turns: list[int]
    seconds: dict[int, float] = field(default_factory=dict)
    updates: dict[int, float] = field(default_factory=dict)
    turn_seconds: float = 0.0
    turn_updates: int = 0

    def note(self, seconds: float) -> bool:
        """Count one update of the current thread count; return whether its turn is over."""
        number = self.turns[0]
        self.seconds[number] = self.seconds.get(number, 0.0) + seconds
        self.updates[number] = self.updates.get(number, 0.0) + 1
        self.turn_seconds += seconds
        self.turn_updates += 1
        if self.turn_seconds < TRIAL_SECONDS or self.turn_updates < TRIAL_UPDATES:
            return False
        del self.turns[0]
        self.turn_seconds, self.turn_updates = 0.0, 0
        return True

    def next(self, turns: list[int]) -> _Trial:
        """Return another trial, in which this one still counts for a part."""
        return _Trial(
            turns,
            {number: _KEPT * seconds for number, seconds in self.seconds.items()},
            {number: _KEPT * updates for number, updates in self.updates.items()},
        )

    def fastest(self) -> int:
        return min(self.seconds, key=lambda number: self.seconds[number] / self.updates[number])


class AdaptiveThreads:
    """Decides after every update how many threads the next one gets. Not thread-safe: one thread calls it.

    Args:
        most: the number of threads while the machine is calm.
        others: returns how many processors other programs use; None if it is too early to know.
        spin: switches short spinning on while others are busy.
        may_change: called once, before the first trial. If it returns False, the number never changes.
        use: sets the number of threads.
        outside: the number before and after the context; None: ``most``.
        now: a monotonic clock, in seconds.
        processors: as for :func:`thread_counts`.
    """

    def __init__(
        self,
        most: int,
        *,
        others: Callable[[], float | None] | None = None,
        spin: Callable[[bool], None] | None = None,
        may_change: Callable[[], bool] = lambda: True,
        use: Callable[[int], None] | None = None,
        outside: int | None = None,
        now: Callable[[], float] = time.monotonic,
        processors: int | None = None,
    ) -> None:
        self.most = self.threads = most
        self._counts = thread_counts(most, processors)
        self._outside = most if outside is None else outside
        self._others = OthersUse().read if others is None else others
        self._spin = ShortSpin().switch if spin is None else spin
        self._use = torch.set_num_threads if use is None else use
        self._now, self._may_change = now, may_change
        self._fixed: bool | None = True if most == 1 else None
        self._busy = False
        self._trial: _Trial | None = None
        self._last_trial = _Trial([])
        self._last_fastest: int | None = None
        self._kind = ""
        self._hold_seconds = FIRST_HOLD_SECONDS
        self._next_trial = 0.0

    @property
    def is_held_down(self) -> bool:
        """Whether other programs leave no use for all threads at the moment."""
        return self._busy and self.threads < self.most

    def update_done(self, seconds: float, kind: str = "update") -> None:
        """Record the duration of one piece of work; the next one may get another number of threads.

        Args:
            seconds: the duration.
            kind: only durations of the same kind of work are compared.
        """
        others = self._others()
        if others is not None:
            self._note_load(others)
        if not self._busy or self._fixed:
            return
        if kind != self._kind:
            self._kind, self._trial, self._last_trial = kind, None, _Trial([])
        if self._trial is not None:
            self._continue_trial(self._trial, seconds)
        elif self._now() >= self._next_trial:
            if self._fixed is None:
                self._fixed = not self._may_change()
            if not self._fixed:
                self._begin_trial()

    def each(self, items: Iterable[_Item], kind: str = "update") -> Iterator[_Item]:
        """Yield the items, and record the time that the caller spends on each as one piece of work."""
        last = time.perf_counter()
        for item in items:
            yield item
            now = time.perf_counter()
            self.update_done(now - last, kind)
            last = now

    def __enter__(self) -> AdaptiveThreads:
        if self._outside != self.most:
            self._use(self.most)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the number of threads and the library's own spinning."""
        self._become_calm()
        if self._outside != self.most:
            self._use(self._outside)

    def _note_load(self, others: float) -> None:
        if not self._busy and others >= BUSY:
            self._busy, self._hold_seconds, self._next_trial = True, FIRST_HOLD_SECONDS, 0.0
            self._spin(True)
        elif self._busy and others <= CALM:
            self._become_calm()

    def _become_calm(self) -> None:
        self._busy, self._trial, self._last_trial = False, None, _Trial([])
        self._take(self.most)
        self._spin(False)

    def _begin_trial(self) -> None:
        self._trial = self._last_trial.next([number for _ in range(ROUNDS) for number in self._counts])
        self._take(self._trial.turns[0])

    def _continue_trial(self, trial: _Trial, seconds: float) -> None:
        if not trial.note(seconds):
            return
        if trial.turns:
            self._take(trial.turns[0])
            return
        fastest, before = trial.fastest(), self._last_fastest
        longer = min(2 * self._hold_seconds, LONGEST_HOLD_SECONDS)
        self._hold_seconds = longer if fastest == before else FIRST_HOLD_SECONDS
        self._last_fastest, self._last_trial, self._trial = fastest, trial, None
        self._next_trial = self._now() + self._hold_seconds
        self._take(fastest)

    def _take(self, threads: int) -> None:
        if threads != self.threads:
            self.threads = threads
            self._use(threads)
