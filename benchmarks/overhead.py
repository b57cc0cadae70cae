"""The overhead of a training step: loader, events, dashboard, monitor.

    python benchmarks/overhead.py [--preset 4x192] [--steps 40] [--rounds 6]

Two runs of the same preset take turns in one process: the trainer as it is, with the live dashboard
drawn into a pseudo-terminal, the metrics file and the monitor; and the bare update that it calls, over one
batch that is already there. Both step times and the ratio of each round are printed, and the share of the
step that the trainer itself measured in making batches. The layer statistics, which only one update in
``log.layer_stats_every`` pays for, are timed by themselves. Python's garbage collections are counted while
the trainer runs, with the time that they take.
Precision and kernels are those that ``cpulm train`` chooses here.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import pty
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from cpulm.data.batches import TrainingBatches
from cpulm.data.loader import Loader
from cpulm.data.prepare import prepare
from cpulm.events import Event, Listener, StepDone
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.execution.update import StepTimer, TrainingParts, training_update
from cpulm.interrupts import StopRequest
from cpulm.run_dir import RunDir
from cpulm.runlog.writer import MetricsWriter
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.system.monitor import Monitor
from cpulm.training.build import build_parts, build_trainer
from cpulm.training.layer_stats import LayerStatistics
from cpulm.training.trainer import Trainer
from cpulm.ui.console import show_warning


@contextlib.contextmanager
def dashboard() -> Iterator[Listener]:
    """The live dashboard on a pseudo-terminal whose output is read and discarded."""
    master, slave = pty.openpty()
    saved = os.dup(2)
    os.dup2(slave, 2)
    os.environ.update(TERM="xterm-256color", COLUMNS="140", LINES="40")
    stop = threading.Event()

    def drain() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                os.read(master, 65536)

    threading.Thread(target=drain, daemon=True).start()
    from cpulm.ui.watch import watch

    try:
        with watch("live") as listener:
            yield listener
    finally:
        stop.set()
        os.dup2(saved, 2)


class Collections:
    """Python's garbage collections during a ``with``: the number of full ones, and the seconds of all."""

    full, seconds = 0, 0.0

    def __enter__(self) -> Collections:
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
            return
        self.seconds += time.perf_counter() - self._began
        self.full += info["generation"] == 2


class OneBatch(Loader):
    """A loader whose every batch is the same, made once."""

    def __init__(self, loader: TrainingBatches) -> None:
        self._batch = loader.batch(0)

    def batch(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002  # any number is the same
        return self._batch


def bare_steps(parts: TrainingParts, trainer: Trainer, count: int) -> float:
    """Median seconds of ``count`` bare updates on one batch."""
    train, runtime = trainer.settings.train, trainer.runtime
    parts = replace(parts, loader=OneBatch(parts.loader))
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        training_update(parts, range(train.grad_accum_steps), runtime, train.grad_clip, StepTimer())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def full_steps(trainer: Trainer, ends: list[float], count: int) -> float:
    """Median seconds from the end of one of the trainer's updates to the end of the next."""
    ends.clear()
    for _ in range(count + 1):
        trainer.update()
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def layer_stats_seconds(parts: TrainingParts, count: int) -> float:
    """Median seconds of one measurement of every matrix."""
    x, y = parts.loader.batch(0)
    parts.model(x, targets=y).backward()
    statistics_of_layers = LayerStatistics(parts.model, 1)
    seconds = []
    for step in range(1, count + 1):
        began = time.perf_counter()
        statistics_of_layers.before_update(step)
        statistics_of_layers.after_update()
        seconds.append(time.perf_counter() - began)
    parts.zero_grad()
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="4x192")
    parser.add_argument("--steps", type=int, default=40, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    settings = resolve(preset=options.preset)
    runtime = choose_runtime(settings.runtime, read_machine(), settings.model)
    tokens = prepare(settings.data, emit=lambda _: None, should_stop=lambda: False)
    ends: list[float] = []
    data_seconds: list[float] = []
    rounds = []
    collections = Collections()
    with tempfile.TemporaryDirectory() as folder, dashboard() as show:
        run = RunDir(Path(folder))
        with MetricsWriter(run.metrics, show_warning) as writer:

            def emit(event: Event) -> None:
                show(event)
                writer(event)
                if isinstance(event, StepDone):
                    ends.append(time.perf_counter())
                    data_seconds.append(event.data_seconds / event.step_seconds)

            trainer = build_trainer(
                settings,
                tokens,
                build_parts(settings, tokens, runtime),
                runtime,
                run,
                emit=emit,
                stop=StopRequest(),
                began=time.monotonic(),
                step_seconds=0.0,
            )
            bare = build_parts(settings, tokens, runtime)
            bare_steps(bare, trainer, 5)
            full_steps(trainer, ends, 5)
            for _ in range(options.rounds):
                with Monitor(emit), collections:
                    full = full_steps(trainer, ends, options.steps)
                rounds.append((full, bare_steps(bare, trainer, options.steps)))
            layer_stats = layer_stats_seconds(bare, options.steps)
    show_result(options, settings, runtime, rounds, data_seconds, layer_stats, collections)


def show_result(
    options: argparse.Namespace,
    settings: Settings,
    runtime: Runtime,
    rounds: list[tuple[float, float]],
    data_seconds: list[float],
    layer_stats: float,
    collections: Collections,
) -> None:
    """Print the results; ``rounds`` are seconds of a complete and of a bare step."""
    ratios = [full / plain for full, plain in rounds]
    full = statistics.median(full for full, _ in rounds)
    every = settings.log.layer_stats_every
    updates = options.rounds * (options.steps + 1)
    result = {
        "preset": options.preset,
        "threads": runtime.threads,
        "precision": runtime.precision,
        "full_ms": round(1000 * full, 3),
        "bare_ms": round(1000 * statistics.median(plain for _, plain in rounds), 3),
        "overhead_percent": round(100 * (statistics.median(ratios) - 1), 2),
        "overhead_percent_range": [round(100 * (edge - 1), 2) for edge in (min(ratios), max(ratios))],
        "batch_percent": round(100 * statistics.median(data_seconds), 3),
        "layer_stats_ms": round(1000 * layer_stats, 3),
        "layer_stats_percent": round(100 * layer_stats / full / every, 3) if every else 0.0,
        "collector_percent": round(100 * collections.seconds / updates / full, 3),
        "full_collections": collections.full,
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.preset} on {runtime.device_name}, {runtime.threads} threads, {runtime.precision}")
    print(f"whole step {result['full_ms']} ms, bare step {result['bare_ms']} ms")
    low, high = result["overhead_percent_range"]
    print(f"overhead {result['overhead_percent']} % (rounds from {low} to {high} %)")
    print(f"of which making batches {result['batch_percent']} %")
    print(f"layer statistics {result['layer_stats_ms']} ms, at one update in {every}: ", end="")
    print(f"{result['layer_stats_percent']} % of a step")
    print(f"garbage collections {result['collector_percent']} %, of everything {collections.full} ", end="")
    print(f"in {updates} updates")


if __name__ == "__main__":
    main()
