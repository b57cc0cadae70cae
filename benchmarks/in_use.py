"""Training, validating and generating beside other busy programs; nanoGPT's training too, from a clone.

    python benchmarks/in_use.py [--presets nanogpt-char,6x256] [--precisions int8,fp32] [--busy 1,2,4]
                                [--work train,validate,generate] [--rounds 2] [--seconds 10]
                                [--processes 1,2] [--sent-as bf16] [--nanogpt ../nanoGPT] [--pin] [--nice]
                                [--json]

One process for each preset and precision does the work without a break, so that it adapts as a run does;
``--processes 2`` trains in two, as ``cpulm train --nproc 2`` does; several numbers, as in 1,2, take turns.
Beside it are k programs that never wait, for each k in turns, as often as there are rounds; ``--pin`` holds
all of them to the first processor, as a slow core would be, and ``--nice`` trains with the lowest priority.
Before each k the work is measured alone, so that it adapts from calm; it then has some seconds to adapt, and
is measured again. A line gives tokens a second, their share of those alone, the fair share P / (P + k) of P
processors, and the share of the processors' time that the process got.
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
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from busy_programs import busy_programs
from ranks import free_port

if TYPE_CHECKING:
    from cpulm.distributed.world import World

CHARACTERS = 65
CALM_SECONDS = 3.0
"""Before the work is measured alone."""
WORDS = ("", "start", "count", "stop", "end")
Work = Callable[[], int]
"""Does a piece of work and returns how many tokens it had."""


def our_work(world: World, preset: str, precision: str, kind: str, *assignments: str) -> Iterator[int]:
    """Tokens of each piece of work of all processes, done as a run or a command does it."""
    import torch

    from cpulm.execution.adaptive_threads import adaptive_threads, threads_for_model
    from cpulm.execution.runtime import choose_runtime
    from cpulm.execution.update import StepTimer, training_update
    from cpulm.generation.generate import Generation
    from cpulm.generation.sampling import Sampling
    from cpulm.settings.resolve_settings import resolve
    from cpulm.system.machine import read_machine, share_of
    from cpulm.training.build import build_random_parts

    given = [f"runtime.precision={precision}", "runtime.device=cpu", *assignments]
    settings = resolve(preset=preset, assignments=given)
    machine = share_of(read_machine(), world.local_size, world.others_here())
    runtime = choose_runtime(settings.runtime, machine)
    vocab_size = settings.data.vocab_size or CHARACTERS
    parts = build_random_parts(settings, vocab_size, runtime, world)
    train = settings.train
    batch = parts.loader.batch(0)

    @torch.inference_mode()
    def validation_loss() -> float:  # as cpulm.evaluation.validation_loss computes it
        return float(parts.model(batch[0], targets=batch[1]))

    if kind == "train":
        threads = adaptive_threads(parts, runtime)
    elif kind == "validate":
        threads = threads_for_model(parts.model, result=validation_loss)
    else:
        threads = threads_for_model(parts.model, rows=1)
    parts.model.train(kind == "train")
    for number in itertools.count():
        began = time.perf_counter()
        if kind == "train":
            first = number * train.grad_accum_steps
            batches = range(first, first + train.grad_accum_steps)
            training_update(parts, batches, runtime, train.grad_clip, StepTimer())
            done = settings.tokens_per_step
        elif kind == "validate":
            batch = parts.loader.batch(number)
            validation_loss()
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


def work(pieces: Iterator[int], world: World) -> None:
    """Work as the main process's input says; ``stop`` is answered with what was done since ``count``."""
    import torch

    for _ in range(3):
        next(pieces)
    if world.is_main:
        print("ready", flush=True)
    tokens, began, cpu, working = 0, 0.0, 0.0, False
    while True:
        asked = world.is_main and (not working or bool(select.select([sys.stdin], [], [], 0.0)[0]))
        word = sys.stdin.readline().strip() if asked else ""
        agreement = world.start_agree(False, float(WORDS.index(word)))  # during an update, as in a run
        if working:
            tokens += next(pieces)
        _, (number,) = agreement.wait()
        word = WORDS[int(number)]
        if word == "end":
            return
        if word == "stop":
            used = torch.tensor([time.process_time() - cpu], dtype=torch.float64)
            world.sum(used)
            if world.is_main:
                print(json.dumps([tokens, time.perf_counter() - began, used.item()]), flush=True)
        if word:
            working = word != "stop"
            tokens, began, cpu = 0, time.perf_counter(), time.process_time()


class Worker:
    """Processes that work all the time and tell what they did."""

    def __init__(self, arguments: list[str], nice: bool, processes: int = 1) -> None:
        command = [sys.executable, __file__, "--worker", *arguments]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "CPULM_START": uuid.uuid4().hex}
        place |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        self._processes = [
            subprocess.Popen(
                ["nice", "-n", "19", *command] if nice else command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(processes)
        ]
        self._main = self._processes[0]
        assert self._main.stdout is not None
        if self._main.stdout.readline() != "ready\n":
            raise SystemExit(f"{arguments} did not start")

    def measure(self, adapting: float, seconds: float) -> tuple[float, float]:
        """Tokens a second, and the processors' time that the processes got, in processors."""
        self._tell("start")
        time.sleep(adapting)
        self._tell("count")
        time.sleep(seconds)
        self._tell("stop")
        assert self._main.stdout is not None
        tokens, wall, cpu = json.loads(self._main.stdout.readline())
        return tokens / wall, cpu / wall

    def end(self) -> None:
        self._tell("end")
        for process in self._processes:
            process.wait()

    def _tell(self, word: str) -> None:
        assert self._main.stdin is not None
        self._main.stdin.write(f"{word}\n")
        self._main.stdin.flush()


def measure(
    workers: list[Worker], counts: list[int], arguments: argparse.Namespace
) -> Iterator[dict[int, dict[str, float]]]:
    """Rates of each worker beside each number of busy programs, the medians of all rounds."""
    rates: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for count in itertools.chain(*[counts[1:]] * arguments.rounds):
        for number, worker in enumerate(workers):
            rates[number, 0].append(worker.measure(CALM_SECONDS, arguments.seconds))
            with busy_programs(count, pin=arguments.pin):
                rates[number, count].append(worker.measure(arguments.adapting, arguments.seconds))
    processors = len(os.sched_getaffinity(0))
    for number in range(len(workers)):
        alone = statistics.median(rate for rate, _ in rates[number, 0])
        yield {
            count: {
                "tokens_per_second": (rate := statistics.median(rate for rate, _ in rates[number, count])),
                "of_alone": rate / alone,
                "fair": processors / (processors + count),
                "processors_got": statistics.median(got for _, got in rates[number, count]) / processors,
            }
            for count in counts
        }


def main() -> None:
    """Measure what was asked for, one after another, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--presets", default="nanogpt-char,4x192,6x256,6x384", help="empty: nanoGPT alone")
    parser.add_argument("--precisions", default="int8,fp32")
    parser.add_argument("--work", default="train")
    parser.add_argument("--busy", default="1,2,4", help="numbers of busy programs; alone is always measured")
    parser.add_argument("--processes", default="1", help="numbers of processes that do the work")
    parser.add_argument("--sent-as", default="none", help="how they send gradients: none, bf16, int8")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--adapting", type=float, default=8.0, help="seconds before a measurement")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--pin", action="store_true")
    parser.add_argument("--nice", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        from cpulm.distributed.join import joined

        first, *rest = arguments.worker
        with joined() as world:
            work(nanogpt_work(Path(rest[0])) if first == "nanogpt" else our_work(world, first, *rest), world)
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
        sizes = [1] if case[0] == "nanogpt" else [int(n) for n in arguments.processes.split(",")]
        sent = [] if case[0] == "nanogpt" else [f"distributed.compression={arguments.sent_as}"]
        workers = [Worker([*case, *sent], arguments.nice, size) for size in sizes]
        for size, rates in zip(sizes, measure(workers, counts, arguments), strict=True):
            name = "nanoGPT" if case[0] == "nanogpt" else " ".join(case)
            name += f", {size} processes" if size > 1 else ""
            for count, figures in rates.items():
                found.append({"case": name, "busy": count, **figures})
                if not arguments.json:
                    print(
                        f"{name:36} {count} busy {figures['tokens_per_second']:9,.0f} tok/s, "
                        f"{figures['of_alone']:5.0%} of alone (fair {figures['fair']:.0%}), "
                        f"got {figures['processors_got']:.0%} of the processors",
                        flush=True,
                    )
        for worker in workers:
            worker.end()
    if arguments.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
