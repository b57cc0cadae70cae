"""Training speed of two installations of cpulm, in short turns: a wheel and a checkout, or two versions.

    python benchmarks/installations.py .venv/bin/python other/bin/python [--presets nanogpt-char,6x256]
                                       [--precisions int8,fp32] [--seconds 30]

Each Python is started once for each preset and precision and takes the cpulm that it imports by itself, with
its own kernels, whose compiler its line names. They take turns of four updates, of which the first is not
counted: the threads of the other process still spin in it. What else the machine does meets both. A line
gives the median time of an update of each and the ratio of the two in pairs of turns, with its quartiles.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import IO

TURN_UPDATES = 4


def serve_updates(preset: str, precision: str) -> None:
    """Takes a turn for each line on stdin, and writes the seconds of an update."""
    from cpulm.execution.runtime import choose_runtime
    from cpulm.execution.update import StepTimer, training_update
    from cpulm.settings.resolve_settings import resolve
    from cpulm.system.machine import read_machine
    from cpulm.training.build import build_random_parts

    settings = resolve(preset=preset, assignments=[f"runtime.precision={precision}", "runtime.device=cpu"])
    runtime = choose_runtime(settings.runtime, read_machine())
    parts = build_random_parts(settings, settings.data.vocab_size or 65, runtime)
    train = settings.train
    print(runtime.libraries["kernels_compiler"] or "no kernels", flush=True)
    batch_numbers = itertools.count()
    while sys.stdin.readline():
        taken = []
        for _ in range(TURN_UPDATES):
            batches = list(itertools.islice(batch_numbers, train.grad_accum_steps))
            began = time.perf_counter()
            training_update(parts, batches, runtime, train.grad_clip, StepTimer())
            taken.append(time.perf_counter() - began)
        print(statistics.median(taken[1:]), flush=True)


class Worker:
    """A process of one installation that waits for a word before each turn."""

    def __init__(self, python: str, preset: str, precision: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [python, __file__, "--serve", preset, precision]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.kernels = self._answer()

    def turn(self) -> float:
        """Seconds of an update."""
        words = self.process.stdin
        assert words
        words.write("\n")
        words.flush()
        return float(self._answer())

    def _answer(self) -> str:
        out: IO[str] | None = self.process.stdout
        line = out.readline() if out else ""
        if not line:
            sys.exit(f"{self.process.args!r} ended")
        return line.strip()


def compare(pythons: list[str], preset: str, precision: str, seconds: float) -> None:
    with ExitStack() as stack:
        workers = [Worker(python, preset, precision) for python in pythons]
        for worker in workers:
            stack.callback(worker.process.kill)
        for worker in workers:
            worker.turn()
        times: list[list[float]] = [[], []]
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            order = (0, 1) if len(times[0]) % 2 else (1, 0)
            for number in order:
                times[number].append(workers[number].turn())
    ratios = [second / first for first, second in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(f"{preset}, {precision}: ", end="")
    for worker, taken in zip(workers, times, strict=True):
        print(f"{statistics.median(taken) * 1000:,.1f} ms ({worker.kernels}), ", end="")
    print(f"second / first {middle:.3f} ({low:.3f} to {high:.3f}), {len(ratios)} pairs", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve_updates(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pythons", nargs=2)
    parser.add_argument("--presets", default="nanogpt-char,6x256")
    parser.add_argument("--precisions", default="int8,fp32")
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    for preset in arguments.presets.split(","):
        for precision in arguments.precisions.split(","):
            compare(arguments.pythons, preset, precision, arguments.seconds)


if __name__ == "__main__":
    main()
