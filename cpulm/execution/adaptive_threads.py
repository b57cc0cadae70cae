"""Adapts the number of threads during a run to the load of other programs on the machine.

All threads of a parallel region wait for the slowest one. If other programs use the same cores, one thread
often has no core while all others wait for it: two threads beside two busy programs can be slower than one.
More threads than processors can be faster than both: while one waits for a processor, the others take its
share of the work, and the scheduler gives more time to more threads. While other programs are busy, several
thread counts are therefore tried in turns on real updates, and the fastest is used while it stays so. The
weights do not depend on the thread count: the kernels sum in an order that is independent of it. Whether
torch's operations are independent of it too is checked before the first change.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
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
from cpulm.system.time_slice import ShortSlice

BUSY, CALM = 0.3, 0.15
"""Processors that other programs use: at ``BUSY`` or more the search begins, at ``CALM`` or less it ends."""
TURN_SECONDS, TURN_UPDATES, ROUNDS = 0.5, 2, 4
"""A turn takes at least this time and this many updates. In the first trial each thread count has this many
turns, in later ones one."""
NEWEST, MARGIN = 0.2, 0.05
"""The newest turn's part in the average speed of its thread count, because the scheduler places the threads
differently each time; and how much faster than the one in use another count must be."""
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
    short_waits: Callable[[bool], None] | None = None,
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
        short_waits, use, processors: as in :class:`AdaptiveThreads`.
    """
    if threads == 1 or others() < BUSY:
        return measure()
    switch = _short_waits() if short_waits is None else short_waits
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


def _short_waits() -> Callable[[bool], None]:
    spin, time_slice = ShortSpin(), ShortSlice()

    def switch(on: bool) -> None:
        spin.switch(on)
        time_slice.switch(on)

    return switch


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
class _Speeds:
    """Updates per second of each thread count: averages over its turns, in which the newest count most.

    ``seconds`` and ``updates`` are those of the turn that is not over.
    """

    average: dict[int, float] = field(default_factory=dict)
    turns: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    updates: int = 0

    def note(self, threads: int, seconds: float) -> bool:
        """Count one update with that many threads; return whether their turn is over."""
        self.seconds += seconds
        self.updates += 1
        if self.seconds < TURN_SECONDS or self.updates < TURN_UPDATES:
            return False
        self.turns[threads] += 1
        before, part = self.average.get(threads, 0.0), max(NEWEST, 1 / self.turns[threads])
        self.average[threads] = before + part * (self.updates / max(self.seconds, 1e-9) - before)
        self.seconds, self.updates = 0.0, 0
        return True

    def fastest(self, used: int) -> int:
        """Return the count ``used``, or the fastest one if that is clearly faster."""
        best = max(self.average, key=self.average.__getitem__)
        return best if self.average[best] > (1 + MARGIN) * self.average.get(used, 0.0) else used


class AdaptiveThreads:
    """Decides after every update how many threads the next one gets. Not thread-safe: one thread calls it.

    Args:
        most: the number of threads while the machine is calm.
        others: returns how many processors other programs use; None if it is too early to know.
        short_waits: switches short spinning and short time slices on while others are busy.
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
        short_waits: Callable[[bool], None] | None = None,
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
        self._short_waits = _short_waits() if short_waits is None else short_waits
        self._use = torch.set_num_threads if use is None else use
        self._now, self._may_change = now, may_change
        self._fixed: bool | None = True if most == 1 else None
        self._busy, self._kind = False, ""
        self._speeds, self._to_try = _Speeds(), list[int]()
        self._used, self._hold_seconds, self._next_trial = most, FIRST_HOLD_SECONDS, 0.0

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
        if not self._busy or self._is_fixed():
            return
        if kind != self._kind:
            self._begin(kind)
        elif self._speeds.note(self.threads, seconds):
            self._next_turn()

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
        """Restore the number of threads, the library's own spinning and the time slices."""
        self._become_calm()
        if self._outside != self.most:
            self._use(self._outside)

    def _note_load(self, others: float) -> None:
        if not self._busy and others >= BUSY:
            self._busy, self._kind = True, ""
            self._short_waits(True)
        elif self._busy and others <= CALM:
            self._become_calm()

    def _become_calm(self) -> None:
        self._busy = False
        self._take(self.most)
        self._short_waits(False)

    def _is_fixed(self) -> bool:
        if self._fixed is None:
            self._fixed = not self._may_change()
        return self._fixed

    def _begin(self, kind: str) -> None:
        """Begin the first trial of another kind of work, or of another busy time."""
        self._kind, self._speeds, self._to_try = kind, _Speeds(), self._counts * ROUNDS
        self._use_from_now(self._counts[0])
        self._take(self._to_try.pop(0))

    def _use_from_now(self, threads: int) -> None:
        self._used, self._hold_seconds = threads, FIRST_HOLD_SECONDS
        self._next_trial = self._now() + self._hold_seconds

    def _next_turn(self) -> None:
        if not self._to_try:
            fastest = self._speeds.fastest(self._used)
            if fastest != self._used:
                self._use_from_now(fastest)
            elif self._now() >= self._next_trial:
                self._to_try = [number for number in self._counts if number != self._used]
                self._hold_seconds = min(2 * self._hold_seconds, LONGEST_HOLD_SECONDS)
                self._next_trial = self._now() + self._hold_seconds
        self._take(self._to_try.pop(0) if self._to_try else self._used)

    def _take(self, threads: int) -> None:
        if threads != self.threads:
            self.threads = threads
            self._use(threads)
