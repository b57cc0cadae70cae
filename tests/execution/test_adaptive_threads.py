"""Adaptive threads, on simulated update times and a simulated clock."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cpulm.execution import threads_in_use
from cpulm.execution.adaptive_threads import (
    BUSY,
    CALM,
    FIRST_HOLD_SECONDS,
    LONGEST_HOLD_SECONDS,
    ONE_THREADS_WORK,
    AdaptiveThreads,
    measured_as_in_a_run,
    threads_for_model,
)
from cpulm.execution.runtime import Runtime
from cpulm.execution.threads_in_use import Threads, UseThreads, thread_counts, threads_beside_others
from cpulm.model.transformer import Transformer
from cpulm.native.kernels import Kernels
from cpulm.settings import ModelSettings
from cpulm.system.cpu_use import OthersUse
from cpulm.system.priority import thread_ids


class Day:
    """A machine whose other programs and whose update times are set by the test."""

    def __init__(self, most: int) -> None:
        self.clock, self.others, self.switches = 0.0, 0.0, list[bool]()
        self.used: list[int] = []
        self.threads = AdaptiveThreads(
            most,
            lambda: thread_counts(most, processors=most) if most > 1 else [],
            others=lambda: self.others,
            short_waits=self.switches.append,
            use=self.used.append,
            now=lambda: self.clock,
        )

    def train(
        self, seconds: float, update_seconds: Callable[[int], float], kind: str = "update"
    ) -> list[int]:
        """Updates for so long; the number of threads of each."""
        taken, end = [], self.clock + seconds
        while self.clock < end:
            taken.append(self.threads.threads)
            one = update_seconds(self.threads.threads)
            self.clock += one
            self.threads.update_done(one, kind)
        return taken


def worse_with_more(threads: int) -> float:
    return 0.1 * threads


def better_with_more(threads: int) -> float:
    return 0.4 / threads


def test_a_calm_machine_gives_all_threads_always() -> None:
    day = Day(4)
    assert set(day.train(60, worse_with_more)) == {4}
    assert day.switches == []
    assert day.used == []


def best_with_all(threads: int) -> float:
    return 0.1 * (1 + abs(threads - 4))


@pytest.mark.parametrize(
    ("seconds", "fastest"), [(worse_with_more, 1), (best_with_all, 4), (better_with_more, 6)]
)
def test_beside_busy_programs_the_fastest_number_is_found_and_kept(
    seconds: Callable[[int], float], fastest: int
) -> None:
    day = Day(4)
    day.others = 2.0
    taken = day.train(600, seconds)
    assert set(taken) == {1, 2, 4, 6}
    at_work = [number for number in taken if number == fastest]
    assert len(at_work) > 0.8 * len(taken)
    assert day.switches == [True]


def test_a_confirmed_number_is_tried_more_seldom() -> None:
    day = Day(2)
    day.others = 1.0
    trials, before = [], 1
    for _ in range(3000):
        number = day.train(0.05, worse_with_more)[-1]
        if number == 3 and before == 1:
            trials.append(day.clock)
        before = number
    between = [later - earlier for earlier, later in itertools.pairwise(trials)]
    holds = [seconds for seconds in between if seconds > FIRST_HOLD_SECONDS / 2]
    assert holds == sorted(holds)
    assert holds[0] < 2 * FIRST_HOLD_SECONDS < LONGEST_HOLD_SECONDS < holds[-1]


def test_one_trial_that_finds_another_number_by_chance_decides_little() -> None:
    """Three threads are much faster in the first trial, and a little slower than one from then on."""
    day = Day(2)
    day.others = 2.0
    day.train(FIRST_HOLD_SECONDS / 2, lambda threads: 0.1 if threads == 3 else 0.2)
    taken = day.train(2 * FIRST_HOLD_SECONDS, lambda threads: 0.103 if threads == 3 else 0.1)
    assert set(taken) == {1, 2, 3}
    assert taken[-1] == 3


def test_a_number_that_was_fast_only_in_the_trial_is_given_up_without_another_one() -> None:
    day = Day(2)
    day.others = 2.0
    day.train(FIRST_HOLD_SECONDS / 2, lambda threads: {3: 0.1, 2: 0.12, 1: 0.2}[threads])
    assert day.threads.threads == 3
    day.train(FIRST_HOLD_SECONDS / 3, lambda threads: {3: 0.15, 2: 0.12, 1: 0.2}[threads])
    assert day.threads.threads == 2


def test_when_the_others_end_all_threads_come_back_at_once() -> None:
    day = Day(2)
    day.others = 2.0
    day.train(30, worse_with_more)
    day.others = 0.0
    assert set(day.train(30, worse_with_more)[1:]) == {2}
    assert day.switches == [True, False]


def test_between_calm_and_busy_nothing_changes() -> None:
    day = Day(2)
    day.others = (CALM + BUSY) / 2
    day.train(10, worse_with_more)
    assert day.switches == []
    day.others = 2.0
    day.train(30, worse_with_more)
    day.others = (CALM + BUSY) / 2
    day.train(30, worse_with_more)
    assert day.switches == [True]


def test_times_of_unlike_work_are_not_compared() -> None:
    """A validation between two updates begins the trial again; it must not decide for the updates."""
    day = Day(2)
    day.others = 2.0
    day.train(1, better_with_more)
    day.train(0.5, worse_with_more, kind="validation")
    assert Counter(day.train(60, better_with_more)).most_common(1)[0][0] == 3


def test_one_thread_has_nothing_to_choose() -> None:
    day = Day(1)
    day.others = 2.0
    assert set(day.train(60, worse_with_more)) == {1}


def test_if_the_bits_would_change_the_threads_stay_and_only_spinning_is_short() -> None:
    day, asked = Day(2), list[str]()

    def none() -> list[int]:
        asked.append("which threads keep the bits?")
        return []

    day.threads = AdaptiveThreads(
        2,
        none,
        others=lambda: 2.0,
        short_waits=day.switches.append,
        use=day.used.append,
        now=lambda: day.clock,
    )
    assert set(day.train(60, worse_with_more)) == {2}
    assert day.switches == [True]
    assert len(asked) == 1


def test_leaving_restores_everything() -> None:
    day = Day(2)
    day.others = 2.0
    day.train(30, worse_with_more)
    with day.threads:
        pass
    assert day.threads.threads == 2
    assert day.switches == [True, False]


def test_a_small_model_writes_with_one_thread_and_all_are_there_again_afterwards() -> None:
    settings = ModelSettings(n_layer=1, n_head=1, n_embd=16, block_size=8)
    model, before = Transformer(settings, vocab_size=16), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for rows, inside in ((1, 1), (ONE_THREADS_WORK, 2), (None, 2)):
            with threads_for_model(model, rows):
                assert torch.get_num_threads() == inside
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def runtime_of(threads: int, kernels: Kernels | None = None, precision: str = "fp32") -> Runtime:
    device = torch.device("cpu")
    return Runtime(device=device, device_name="cpu", threads=threads, precision=precision, kernels=kernels)


def test_a_measurement_on_a_calm_machine_changes_nothing() -> None:
    seen: list[object] = []
    seconds = measured_as_in_a_run(
        lambda: 2.0, runtime_of(2), others=lambda: 0.05, short_waits=seen.append, use=seen.append
    )
    assert (seconds, seen) == (2.0, [])


def test_one_thread_is_measured_without_waiting_for_what_others_use() -> None:
    """That takes half a second, and no number of threads follows from it."""
    found = measured_as_in_a_run(lambda: 2.0, runtime_of(1), others=lambda: pytest.fail("waited for"))
    assert found == 2.0


@pytest.mark.parametrize("seconds", [(1.0, 2.0, 3.0), (3.0, 2.0, 1.0), (3.0, 1.0, 2.0)])
def test_a_measurement_beside_busy_programs_spins_briefly_and_tries_what_a_run_tries(
    seconds: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_in_use, "usable_processors", lambda: [0, 1])
    seen: list[object] = []
    measured = iter(seconds)
    now = measured_as_in_a_run(
        lambda: next(measured),
        runtime_of(2),
        others=lambda: 1.0,
        short_waits=seen.append,
        use=seen.append,
    )
    assert now == min(seconds)
    assert seen == [True, Threads(3), Threads(2), Threads(1), Threads(2), False]


@pytest.mark.parametrize(
    ("most", "processors", "counts"),
    [(1, 1, [1]), (2, 2, [3, 2, 1]), (4, 4, [6, 4, 2, 1]), (2, 4, [2, 1]), (1, 4, [1]), (4, 8, [4, 2, 1])],
)
def test_more_threads_than_processors_are_tried_where_all_are_in_use(
    most: int, processors: int, counts: list[int]
) -> None:
    """Who sets fewer threads than there are processors wants the rest for other programs."""
    assert thread_counts(most, processors) == counts


@pytest.mark.parametrize(
    ("precision", "threads", "processors", "beside"),
    [
        ("int8", 2, [0, 1], [[(1, 3, False)]]),
        ("int8", 4, [0, 1, 2, 3], [[(1, 5, False), (4, 5, False)]]),
        ("int8", 2, [0, 1, 2, 3], [[(1, 2, False)]]),
        ("fp32", 2, [0, 1], [[(1, 3, True)], [(3, 3, False), (2, 3, False), (1, 3, False)]]),
        ("bf16", 2, [0, 1], [[(3, 3, False), (2, 3, False), (1, 3, False)]]),
    ],
)
def test_beside_others_the_kernels_have_a_pool(
    kernels_library: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    threads: int,
    processors: list[int],
    beside: list[list[tuple[int, int, bool]]],
) -> None:
    """It has a thread for each processor beside the calling one, if the run may use them all."""
    kernels = Kernels(kernels_library)
    if kernels.pool is None or (precision == "int8" and kernels.int8 is None) or not kernels.has_products:
        pytest.skip("no pools, int8 products or BLAS here")
    monkeypatch.setattr(threads_in_use, "usable_processors", lambda: processors)
    assert threads_beside_others(runtime_of(threads, kernels, precision)) == beside
    without = [[(count, 0, False) for count in thread_counts(threads)]]
    assert threads_beside_others(runtime_of(threads, None, precision)) == without


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are held to processors on Linux")
def test_threads_of_a_full_pool_are_held_to_one_processor_each_and_the_calling_one_to_none(
    kernels_library: Path,
) -> None:
    kernels, processors = Kernels(kernels_library), os.sched_getaffinity(0)
    if kernels.pool is None:
        pytest.skip("no pools on this system")
    before, use = set(thread_ids()), UseThreads(kernels.pool)
    try:
        use(Threads(1, len(processors) + 1))
        held: set[int] = set()
        for _ in range(1000):
            held = {cpu for one in set(thread_ids()) - before for cpu in os.sched_getaffinity(one)}
            if all(len(os.sched_getaffinity(one)) == 1 for one in set(thread_ids()) - before):
                break
            time.sleep(0.01)
        assert held == processors
        assert len(set(thread_ids()) - before) == len(processors)
        assert os.sched_getaffinity(0) == processors
    finally:
        use(Threads(2))
    end = time.monotonic() + 10  # a thread that was joined may take a moment to be gone
    while not set(thread_ids()) <= before and time.monotonic() < end:
        time.sleep(0.01)
    assert set(thread_ids()) <= before


@pytest.mark.parametrize(
    ("losses", "taken"), [([1.0, 1.0], Threads(1, 3, products=True)), ([1.0, 1.5], Threads(3, 3))]
)
def test_a_validation_has_its_products_in_the_pool_if_its_loss_stays_the_same(
    kernels_library: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], taken: Threads
) -> None:
    kernels, before = Kernels(kernels_library), torch.get_num_threads()
    if kernels.pool is None or not kernels.has_products:
        pytest.skip("no pools or no BLAS on this system")
    monkeypatch.setattr(threads_in_use, "usable_processors", lambda: [0, 1])
    monkeypatch.setattr(OthersUse, "read", lambda self: 2.0)
    settings = ModelSettings(n_layer=1, n_head=1, n_embd=16, block_size=8)
    model, results = Transformer(settings, vocab_size=16), iter(losses)
    model.use_kernels(kernels)
    torch.set_num_threads(2)
    try:
        with threads_for_model(model, result=lambda: next(results)) as threads:
            threads.update_done(0.1)
            assert threads.threads == taken
    finally:
        torch.set_num_threads(before)


def test_other_work_inside_begins_with_the_threads_of_a_calm_machine() -> None:
    day = Day(2)
    day.others = 2.0
    day.train(30, worse_with_more)
    assert day.threads.threads == 1
    with day.threads.calm_inside():
        assert (day.threads.threads, day.used[-1]) == (2, 2)
    assert (day.threads.threads, day.used[-1]) == (1, 1)


def test_a_single_choice_is_used_at_once_and_never_tried_again() -> None:
    day = Day(2)
    day.threads = AdaptiveThreads(
        2,
        lambda: [7],
        others=lambda: day.others,
        short_waits=day.switches.append,
        use=day.used.append,
        now=lambda: day.clock,
    )
    day.others = 1.0
    assert set(day.train(300, best_with_all)[1:]) == {7}
    day.others = 0.0
    day.train(1, best_with_all)
    assert day.used == [7, 2]
