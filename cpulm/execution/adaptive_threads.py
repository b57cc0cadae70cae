"""Adapts the threads of a run to the load of other programs on the machine.

All threads of an OpenMP region wait for the slowest one. If other programs use the same cores, one thread
often has no core while all others wait for it: two threads beside two busy programs can be slower than one.
So while other programs are busy, the kernels run on a pool of threads that wait for none that has no core
(``cpulm/native/thread_pool.h``), and products in float32 too, if their bits stay the same. If several numbers
of threads are left for torch's own operations, they are tried in turns on real updates, and the fastest is
used while it stays so. The weights do not depend on the threads: the kernels sum in an order that is
independent of them. Whether the rest is independent of them too is checked before the first change.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor

from cpulm.execution import threads_in_use
from cpulm.execution.rng import random_states, restore_random_states
from cpulm.execution.runtime import Runtime
from cpulm.execution.threads_in_use import (
    Threads,
    UseThreads,
    pool_of,
    thread_counts,
    threads_beside_others,
    threads_of_products,
    with_pool,
)
from cpulm.execution.update import StepTimer, TrainingParts, accumulate_gradients
from cpulm.model.transformer import Transformer
from cpulm.system.cpu_use import OthersUse

BUSY, CALM = 0.1, 0.05
"""Processors that other programs use: at ``BUSY`` or more the threads change, at ``CALM`` or less they change
back. Beside 0.1 of a processor (AMD EPYC, Zen 5, 2 cores) the preset ``small`` kept 84 % of its speed with
OpenMP's threads and 91 % with the pool, beside none 100 and 94 %."""
TURN_SECONDS, TURN_UPDATES, ROUNDS = 0.5, 2, 4
"""A turn takes at least this time and this many updates. In the first trial each choice has this many turns,
in later ones one."""
NEWEST, MARGIN = 0.2, 0.05
"""The newest turn's part in the average speed of its choice, because the scheduler places the threads
differently each time; and how much faster than the one in use another one must be."""
FIRST_HOLD_SECONDS, LONGEST_HOLD_SECONDS = 15.0, 120.0
"""Time until the next trial: it doubles, up to the longest, each time that a trial confirms the result."""
ONE_THREADS_WORK = 1_500_000
"""Parameters times rows of a step of generation up to which one thread takes it: several mostly wait for each
other. On an AMD EPYC 1 and 2 threads wrote 3,875 and 3,692 tokens/s with 0.8 M parameters, 2,106 and 2,689
with 2.2 M."""

_Item = TypeVar("_Item")
_Choice = TypeVar("_Choice")


def adaptive_threads(parts: TrainingParts, runtime: Runtime) -> AdaptiveThreads[Threads]:
    """Return the adaptive threads of a run: ``runtime.threads`` on a CPU while it is calm, one elsewhere."""
    most = runtime.threads if runtime.device.type == "cpu" else 1
    use = UseThreads(pool_of(runtime.kernels))

    def beside() -> list[Threads]:
        if most == 1 or parts.exchange is not None:  # an update lasts as long as that of the slowest process
            return []
        for choices in threads_beside_others(runtime):
            if same_bits(parts, runtime, [Threads(most), *choices], use):
                return choices
        return []

    return AdaptiveThreads(Threads(most), beside, use=use, others=OthersUse(runtime.others_of_run).read)


def threads_for_model(
    model: Transformer, rows: int | None = None, result: Callable[[], float] | None = None
) -> AdaptiveThreads[Threads]:
    """Return the adaptive threads of inference: at most torch's number; fixed if the model has no kernels.

    Args:
        rows: texts that are written at once, a token of each in a step; None: whole batches are computed.
        result: computes something like the work's; the pool computes products if its bits stay the same.
    """
    most = torch.get_num_threads() if model.head_weight.device.type == "cpu" else 1
    is_small = rows is not None and rows * sum(p.numel() for p in model.parameters()) <= ONE_THREADS_WORK
    kernels = model.attention_kernels
    use = UseThreads(pool_of(kernels) if rows is None else None)

    def beside() -> list[Threads]:
        if most == 1 or kernels is None or is_small:
            return []
        if rows is not None:
            return with_pool(thread_counts(most), most, None)
        *pooled, several = threads_of_products(most, kernels, in_pool=result is not None)
        for choices in pooled:
            if result is not None and same_results(result, [Threads(most), *choices], use):
                return choices
        return several

    return AdaptiveThreads(Threads(1 if is_small else most), beside, use=use, outside=Threads(most))


def measured_as_in_a_run(
    measure: Callable[[], float],
    runtime: Runtime,
    *,
    others: Callable[[], float],
    short_waits: Callable[[bool], None] | None = None,
    use: Callable[[Threads], None] | None = None,
) -> float:
    """Measure the seconds of a few updates with the threads that a run would take after a while.

    These are all threads; while other programs are busy, the fastest of the first of
    :func:`threads_beside_others`, with short waits. Each is then measured for a turn: short updates are
    disturbed in some moments and not in others.

    Args:
        measure: runs updates and returns the seconds of one.
        runtime: whose number of threads torch uses, and shall use afterwards.
        others: as :meth:`OthersUse.newest`, which may wait; not asked if there is one thread.
        short_waits, use: as in :class:`AdaptiveThreads`.
    """
    if runtime.threads == 1 or others() < BUSY:
        return measure()
    switch = threads_in_use.short_waits() if short_waits is None else short_waits
    change = UseThreads(pool_of(runtime.kernels)) if use is None else use
    switch(True)
    try:
        measured = []
        for threads in threads_beside_others(runtime)[0]:
            change(threads)
            turn = [measure()]
            while sum(turn) < TURN_SECONDS:
                turn.append(measure())
            measured.append(sum(turn) / len(turn))
        return min(measured)
    finally:
        change(Threads(runtime.threads))
        switch(False)


def same_bits(
    parts: TrainingParts, runtime: Runtime, choices: Sequence[_Choice], use: Callable[[_Choice], None]
) -> bool:
    """Whether loss and gradients of a micro-batch are bit-identical for each choice of threads.

    Uses the first one afterwards, restores the random state, and leaves no gradients.
    """
    state = random_states(runtime.device)

    def bits() -> tuple[object, ...]:
        restore_random_states(state)
        loss = accumulate_gradients(parts, (0,), runtime, StepTimer())
        gradients = [_digest(p.grad) for p in parts.model.parameters() if p.grad is not None]
        parts.zero_grad()
        return loss, *gradients

    try:
        return same_results(bits, choices, use)
    finally:
        restore_random_states(state)


def same_results(
    compute: Callable[[], object], choices: Sequence[_Choice], use: Callable[[_Choice], None]
) -> bool:
    """Whether ``compute`` returns the same for each choice of threads; uses the first one afterwards."""
    results = set()
    try:
        for choice in choices:
            use(choice)
            results.add(compute())
    finally:
        use(choices[0])
    return len(results) == 1


def _digest(gradient: Tensor) -> bytes:
    return hashlib.blake2b(gradient.contiguous().cpu().numpy().tobytes()).digest()


@dataclass
class _Speeds(Generic[_Choice]):
    """Updates per second of each choice of threads: averages over its turns, in which the newest count most.

    ``seconds`` and ``updates`` are those of the turn that is not over.
    """

    average: dict[_Choice, float] = field(default_factory=dict)
    turns: Counter[_Choice] = field(default_factory=Counter)
    seconds: float = 0.0
    updates: int = 0

    def note(self, threads: _Choice, seconds: float) -> bool:
        """Count one update with these threads; return whether their turn is over."""
        self.seconds += seconds
        self.updates += 1
        if self.seconds < TURN_SECONDS or self.updates < TURN_UPDATES:
            return False
        self.turns[threads] += 1
        before, part = self.average.get(threads, 0.0), max(NEWEST, 1 / self.turns[threads])
        self.average[threads] = before + part * (self.updates / max(self.seconds, 1e-9) - before)
        self.seconds, self.updates = 0.0, 0
        return True

    def fastest(self, used: _Choice) -> _Choice:
        """Return the choice ``used``, or the fastest one if that is clearly faster."""
        best = max(self.average, key=self.average.__getitem__)
        return best if self.average[best] > (1 + MARGIN) * self.average.get(used, 0.0) else used


class AdaptiveThreads(Generic[_Choice]):
    """Decides after every update which threads the next one gets. Not thread-safe: one thread calls it.

    Args:
        calm: the threads while the machine is calm.
        beside: returns those that are tried while other programs are busy, the first at first; called once,
            before the first change. If there are none, the threads never change.
        use: changes the threads.
        others: returns how many processors other programs use; None if it is too early to know.
        short_waits: switches short spinning and short time slices on while others are busy.
        outside: the threads before and after the context; None: ``calm``.
        now: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        calm: _Choice,
        beside: Callable[[], Sequence[_Choice]],
        *,
        use: Callable[[_Choice], None],
        others: Callable[[], float | None] | None = None,
        short_waits: Callable[[bool], None] | None = None,
        outside: _Choice | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calm = self.threads = calm
        self._find_beside, self._found = beside, False
        self._beside: Sequence[_Choice] = ()
        self._outside = calm if outside is None else outside
        self._use = use
        self._others = OthersUse().read if others is None else others
        self._short_waits = threads_in_use.short_waits() if short_waits is None else short_waits
        self._now = now
        self._busy, self._kind = False, ""
        self._speeds, self._to_try = _Speeds[_Choice](), list[_Choice]()
        self._used, self._hold_seconds, self._next_trial = calm, FIRST_HOLD_SECONDS, 0.0

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

    @contextmanager
    def calm_inside(self) -> Iterator[None]:
        """Use the threads of a calm machine in this context, where other work adapts its own."""
        threads = self.threads
        self._take(self.calm)
        try:
            yield
        finally:
            self._take(threads)

    def __enter__(self) -> AdaptiveThreads[_Choice]:
        if self._outside != self.calm:
            self._use(self.calm)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the threads, the library's own spinning and the time slices."""
        try:
            self._become_calm()
        finally:
            if self._outside != self.calm:
                self._use(self._outside)

    def _note_load(self, others: float) -> None:
        if not self._busy and others >= BUSY:
            self._busy, self._kind = True, ""
            self._short_waits(True)
        elif self._busy and others <= CALM:
            self._become_calm()

    def _become_calm(self) -> None:
        self._busy = False
        try:
            self._take(self.calm)
        finally:
            self._short_waits(False)

    def _is_fixed(self) -> bool:
        if not self._found:
            self._beside, self._found = self._find_beside(), True
        return not self._beside

    def _begin(self, kind: str) -> None:
        """Begin the first trial of another kind of work, or of another busy time."""
        several = len(self._beside) > 1
        self._kind, self._speeds = kind, _Speeds[_Choice]()
        self._to_try = [*self._beside] * (ROUNDS if several else 1)
        self._use_from_now(self._beside[0])
        self._take(self._to_try.pop(0))

    def _use_from_now(self, threads: _Choice) -> None:
        self._used, self._hold_seconds = threads, FIRST_HOLD_SECONDS
        self._next_trial = self._now() + self._hold_seconds

    def _next_turn(self) -> None:
        if not self._to_try:
            fastest = self._speeds.fastest(self._used)
            if fastest != self._used:
                self._use_from_now(fastest)
            elif self._now() >= self._next_trial:
                self._to_try = [threads for threads in self._beside if threads != self._used]
                self._hold_seconds = min(2 * self._hold_seconds, LONGEST_HOLD_SECONDS)
                self._next_trial = self._now() + self._hold_seconds
        self._take(self._to_try.pop(0) if self._to_try else self._used)

    def _take(self, threads: _Choice) -> None:
        if threads != self.threads:
            self.threads = threads
            self._use(threads)
