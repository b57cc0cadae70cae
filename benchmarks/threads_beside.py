"""Training with several choices of threads beside busy programs, in turns in one process.

    python benchmarks/threads_beside.py [--preset small] [--precision int8] [--busy 1,2,4]
                                        [--threads 2,3,1,1+3,1+2,1+3free] [--part 1] [--turn 1] [--rounds 4]

``2``: two threads of torch, on which the kernels run too. ``1+3``: one thread of torch, and a pool of three
for the kernels, of which all but the calling one are held to one processor each if there are more than
processors; ``1+3free``: all of them run anywhere. Each round has a turn of each choice, in random order, with
the short waits of a run beside busy programs. A line gives the speed in percent of that of the first choice
alone, the slowest and the fastest turn, and the share of the processors' time that the process got.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from busy_programs import busy_programs

from cpulm.distributed.join import joined
from cpulm.execution.runtime import choose_runtime
from cpulm.execution.threads_in_use import Threads, UseThreads, short_waits
from cpulm.execution.update import StepTimer, training_update
from cpulm.native.thread_pool import ThreadPool
from cpulm.settings.resolve_settings import resolve
from cpulm.system.cpu_use import usable_processors
from cpulm.system.machine import read_machine
from cpulm.training.build import build_random_parts

FREE = "free"
CHARACTERS = 65
CALM_SECONDS = 2.0


def use(choice: str, pool: ThreadPool | None) -> None:
    """Use the threads that a choice names."""
    first, _, second = choice.partition("+")
    threads = Threads(int(first), int(second.removesuffix(FREE) or 0))
    UseThreads(pool)(threads)
    if pool is not None and choice.endswith(FREE):
        pool.use(threads.pool)


def turn(updates: Iterator[int], seconds: float) -> tuple[float, float]:
    """Tokens a second after one update, and the processors' time that this process got, in processors."""
    next(updates)
    tokens, began, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        tokens += next(updates)
    wall = time.perf_counter() - began
    return tokens / wall, (time.process_time() - used) / wall


def main() -> None:
    """Measure what was asked for, and print a line for each choice and number of programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--busy", default="1,2,4")
    parser.add_argument("--threads", default="2,3,1,1+3,1+2,1+3free")
    parser.add_argument("--part", type=float, default=1.0, help="of the time that each program works")
    parser.add_argument("--turn", type=float, default=1.0, help="seconds")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    choices = arguments.threads.split(",")
    given = [f"runtime.precision={arguments.precision}", "runtime.device=cpu"]
    settings = resolve(preset=arguments.preset, assignments=given)
    train, processors = settings.train, len(usable_processors())
    with joined() as world:
        runtime = choose_runtime(settings.runtime, read_machine())
        parts = build_random_parts(settings, settings.data.vocab_size or CHARACTERS, runtime, world)
        pool = None if runtime.kernels is None else runtime.kernels.pool

        def run_updates() -> Iterator[int]:
            first = 0
            while True:
                batches = range(first, first + train.grad_accum_steps)
                training_update(parts, batches, runtime, train.grad_clip, StepTimer())
                first += train.grad_accum_steps
                yield settings.tokens_per_step

        updates, switch = run_updates(), short_waits()
        for busy in [0, *map(int, arguments.busy.split(","))]:
            found: dict[str, list[tuple[float, float]]] = defaultdict(list)
            with busy_programs(busy, part=arguments.part):
                switch(busy > 0)
                time.sleep(CALM_SECONDS)
                for _ in range(arguments.rounds):
                    for choice in random.sample(choices, len(choices)):
                        use(choice, pool)
                        found[choice].append(turn(updates, arguments.turn))
                use(str(torch.get_num_threads()), pool)
                switch(False)
            if not busy:
                alone = statistics.median(rate for rate, _ in found[choices[0]])
            for choice in choices:
                rates = [rate / alone for rate, _ in found[choice]]
                got = statistics.mean(got for _, got in found[choice]) / processors
                print(
                    f"{arguments.preset} {arguments.precision}, {busy} busy, {choice:8} threads: "
                    f"{statistics.mean(rates):4.0%} ({min(rates):.0%} to {max(rates):.0%}), got {got:.0%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
