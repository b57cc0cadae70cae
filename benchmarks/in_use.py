"""Training, validating and generating beside other busy programs; nanoGPT's training too, from a clone.

    python benchmarks/in_use.py [--presets nanogpt-char,small] [--precisions int8,fp32] [--busy 0,1,2,4]
                                [--work train,validate,generate] [--rounds 2] [--seconds 10]
                                [--nanogpt ../nanoGPT] [--pin] [--nice] [--json]

One process for each preset and precision does the work without a break, so that it adapts as a run does.
Beside it are k programs that never wait, for each k in turns, as often as there are rounds; ``--pin`` holds
all of them to the first processor, as a slow core would be, and ``--nice`` trains with the lowest priority.
After each change the work has some seconds to adapt, and is then measured. A line gives tokens a second,
their share of those alone, the fair share P / (P + k) of P processors, and the share of the processors'
time that the process got.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ADAPTING_SECONDS = 8.0
BUSY = [sys.executable, "-c", "while True: pass"]
CHARACTERS = 65
Work = Callable[[], int]
"""Does a piece of work and returns how many tokens it had."""


def our_work(preset: str, precision: str, kind: str) -> Iterator[int]:
    """Tokens of each piece of work, done as a run or a command does it."""
    import torch

    from cpulm.evaluation.validation_loss import evaluate
    from cpulm.execution.adaptive_threads import adaptive_threads
    from cpulm.execution.runtime import choose_runtime
    from cpulm.execution.update import StepTimer, training_update
    from cpulm.generation.generate import Generation
    from cpulm.generation.sampling import Sampling
    from cpulm.settings.resolve_settings import resolve
    from cpulm.system.machine import read_machine
    from cpulm.training.build import build_random_parts

    settings = resolve(preset=preset, assignments=[f"runtime.precision={precision}", "runtime.device=cpu"])
    runtime = choose_runtime(settings.runtime, read_machine())
    vocab_size = settings.data.vocab_size or CHARACTERS
    parts = build_random_parts(settings, vocab_size, runtime)
    train = settings.train
    threads = adaptive_threads(parts, runtime)
    if kind == "generate":
        parts.model.eval()
    for number in itertools.count():
        began = time.perf_counter()
        if kind == "train":
            first = number * train.grad_accum_steps
            batches = range(first, first + train.grad_accum_steps)
            training_update(parts, batches, runtime, train.grad_clip, StepTimer())
            done = settings.tokens_per_step
        elif kind == "validate":
            batch = parts.loader.batch(number)
            evaluate(parts.model, [batch], 1, emit=lambda _: None, should_stop=lambda: False)
            done = batch[0].numel()
        else:
            done = min(64, settings.model.block_size - 1)
            made = Generation(
                parts.model, [0], max_new_tokens=done, sampling=Sampling(), seed=number, end_ids={vocab_size}
            )
            for _ in made:
                pass
        threads.update_done(time.perf_counter() - began)
        yield done
    torch.set_num_threads(1)


def nanogpt_work(folder: Path) -> Iterator[int]:
    """Tokens of each update of nanoGPT's own model by its README's recipe for CPUs."""
    import torch

    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    with contextlib.redirect_stdout(io.StringIO()):
        model = peer.GPT(peer.GPTConfig(64, CHARACTERS, 4, 4, 128, dropout=0.0, bias=False))
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    x, y = torch.randint(CHARACTERS, (2, 12, 64))
    while True:
        _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield x.numel()


def work(pieces: Iterator[int]) -> None:
    """Work, and answer each line of the input with what was done since the line before."""
    for _ in range(3):
        next(pieces)
    print("ready", flush=True)
    tokens, began, cpu = 0, time.perf_counter(), time.process_time()
    for done in pieces:
        tokens += done
        line = sys.stdin.readline() if select.select([sys.stdin], [], [], 0.0)[0] else ""
        if line:
            now, cpu_now = time.perf_counter(), time.process_time()
            print(json.dumps([tokens, now - began, cpu_now - cpu]), flush=True)
            tokens, began, cpu = 0, now, cpu_now
        if line == "end\n":
            return


@contextmanager
def busy_programs(count: int, pin: bool) -> Iterator[None]:
    """So many programs beside, that never wait."""
    with ExitStack() as stack:
        for _ in range(count):
            program = subprocess.Popen(BUSY)
            stack.callback(program.wait)
            stack.callback(program.kill)
            if pin:
                os.sched_setaffinity(program.pid, {min(os.sched_getaffinity(0))})
        yield


class Worker:
    """A process that works all the time and tells what it did."""

    def __init__(self, arguments: list[str], nice: bool) -> None:
        command = [sys.executable, __file__, "--worker", *arguments]
        self._process = subprocess.Popen(
            ["nice", "-n", "19", *command] if nice else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise SystemExit(f"{arguments} did not start")

    def measure(self, seconds: float) -> tuple[float, float]:
        """Tokens a second, and the processors' time that the process got, in processors."""
        self._ask("start")
        time.sleep(seconds)
        tokens, wall, cpu = self._ask("stop")
        return tokens / wall, cpu / wall

    def end(self) -> None:
        self._ask("end")
        self._process.wait()

    def _ask(self, word: str) -> list[float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        answer: list[float] = json.loads(self._process.stdout.readline())
        return answer


def measure(worker: Worker, counts: list[int], arguments: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Rates beside each number of busy programs, the medians of all rounds."""
    rates: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for _ in range(arguments.rounds):
        for count in counts:
            with busy_programs(count, arguments.pin):
                time.sleep(ADAPTING_SECONDS if count or any(rates.values()) else 1.0)
                rates[count].append(worker.measure(arguments.seconds))
    processors = len(os.sched_getaffinity(0))
    alone = statistics.median(rate for rate, _ in rates[0])
    return {
        count: {
            "tokens_per_second": (rate := statistics.median(rate for rate, _ in found)),
            "of_alone": rate / alone,
            "fair": processors / (processors + count),
            "processors_got": statistics.median(got for _, got in found) / processors,
        }
        for count, found in rates.items()
    }


def main() -> None:
    """Measure what was asked for, one after another, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--presets", default="nanogpt-char,tiny,small,medium", help="empty: nanoGPT alone")
    parser.add_argument("--precisions", default="int8,fp32")
    parser.add_argument("--work", default="train")
    parser.add_argument("--busy", default="0,1,2,4", help="numbers of busy programs; 0 is always measured")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--pin", action="store_true")
    parser.add_argument("--nice", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        first, *rest = arguments.worker
        work(nanogpt_work(Path(rest[0])) if first == "nanogpt" else our_work(first, *rest))
        return
    counts = sorted({0, *map(int, arguments.busy.split(","))})
    cases = [
        [preset, precision, kind]
        for preset in filter(None, arguments.presets.split(","))
        for precision in arguments.precisions.split(",")
        for kind in arguments.work.split(",")
    ]
    if arguments.nanogpt:
        cases.append(["nanogpt", str(arguments.nanogpt)])
    found: list[dict[str, Any]] = []
    for case in cases:
        worker = Worker(case, arguments.nice)
        name = "nanoGPT" if case[0] == "nanogpt" else " ".join(case)
        for count, figures in measure(worker, counts, arguments).items():
            found.append({"case": name, "busy": count, **figures})
            if not arguments.json:
                print(
                    f"{name:30} {count} busy {figures['tokens_per_second']:9,.0f} tok/s, "
                    f"{figures['of_alone']:5.0%} of alone (fair {figures['fair']:.0%}), "
                    f"got {figures['processors_got']:.0%} of the processors",
                    flush=True,
                )
        worker.end()
    if arguments.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
