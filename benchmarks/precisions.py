"""How long a training step takes in fp32, int8 and bf16 on this machine: the measurement behind
``cpulm/system/precisions.py``.

    python benchmarks/precisions.py --seconds 20
    python benchmarks/precisions.py --shape small --shape 64:12x64

A step is the update that a run takes, of one micro-batch, eager, on one fixed
batch of random tokens. All variants of a shape run in one process and in turns, so that whatever else the
machine does falls on all alike; a ratio is the median of the rounds' ratios. ``share`` is the part of its
threads' time that the process received: a table is worth keeping only where it is near 1.
A shape is a preset, or WIDTH:ROWSxTOKENS, two layers of that width with so many rows in a batch.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import torch

from cpulm.execution.runtime import choose_runtime
from cpulm.execution.update import StepTimer, training_update
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.training.build import build_random_parts

SHAPES = (
    *("16:4x16", "32:4x16", "64:4x16", "128:4x16", "256:4x16", "512:4x16"),
    *("32:12x64", "64:12x64", "96:12x64", "128:12x64"),
    *("nanogpt-char", "4x192", "6x256", "6x384", "nano", "8x512"),
)
VARIANTS = {
    "fp32": ["runtime.precision=fp32"],
    "int8": ["runtime.precision=int8"],
    "bf16": ["runtime.precision=bf16"],
    "fp32, no kernels": ["runtime.precision=fp32", "runtime.kernels=off"],
    "int8, no kernels": ["runtime.precision=int8", "runtime.kernels=off"],
}
CHARACTERS = 65
"""Vocabulary of the presets whose tokenizer decides it, and of the toy shapes: tinyshakespeare's."""


def settings_of(shape: str, variant: str) -> Settings:
    """The settings of a preset or a toy shape, in the given variant."""
    changes = ["runtime.device=cpu", *VARIANTS[variant]]
    if ":" not in shape:
        return resolve(preset=shape, environ={}, assignments=changes)
    width, batch = shape.split(":")
    rows, tokens = batch.split("x")
    changes += ["model.n_layer=2", f"model.n_head={max(1, int(width) // 32)}", f"model.n_embd={width}"]
    changes += [f"model.block_size={tokens}", f"train.micro_batch_size={rows}", "data.vocab_size=null"]
    return resolve(environ={}, assignments=changes)


def step_of(settings: Settings) -> Callable[[], object]:
    """One update on a fixed batch."""
    runtime = choose_runtime(settings.runtime, read_machine())
    vocab = settings.data.vocab_size or CHARACTERS
    parts = build_random_parts(settings, vocab, runtime)
    return lambda: training_update(parts, (0,), runtime, settings.train.grad_clip, StepTimer())


def in_turns(steps: dict[str, Callable[[], object]], seconds: float) -> tuple[dict[str, list[float]], float]:
    """Seconds of a step of each variant by round, a round having at least 20 ms of each, and the share of
    its threads' time that this process received."""
    inner = {}
    for name, step in steps.items():
        step()
        began = time.perf_counter()
        step()
        inner[name] = max(1, round(0.02 / (time.perf_counter() - began)))
    taken: dict[str, list[float]] = {name: [] for name in steps}
    began, worked = time.perf_counter(), time.process_time()
    while len(taken["fp32"]) < 3 or time.perf_counter() - began < seconds:
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(inner[name]):
                step()
            taken[name].append((time.perf_counter() - started) / inner[name])
    given = (time.perf_counter() - began) * torch.get_num_threads()
    return taken, (time.process_time() - worked) / given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", action="append", help="default: all that the table has")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="beside fp32; default: all")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each shape")
    arguments = parser.parse_args()
    machine = read_machine()
    variants = [name for name in VARIANTS if name == "fp32" or name in (arguments.variant or VARIANTS)]
    print(f"{machine.cpu_model}, {', '.join(machine.instruction_sets)}; torch {torch.__version__}")
    print(f"\n| shape | fp32, ms | {' | '.join(variants[1:])} | share |")
    print("|---" * (len(variants) + 2) + "|")
    for shape in arguments.shape or SHAPES:
        steps = {name: step_of(settings_of(shape, name)) for name in variants}
        taken, share = in_turns(steps, arguments.seconds)
        ratios = [
            statistics.median(a / b for a, b in zip(taken[name], taken["fp32"], strict=True))
            for name in variants[1:]
        ]
        columns = [f"{statistics.median(taken['fp32']) * 1e3:.1f}", *(f"{ratio:.2f}" for ratio in ratios)]
        print(f"| `{shape}` | {' | '.join(columns)} | {share:.2f} |", flush=True)
        del steps
        gc.collect()


if __name__ == "__main__":
    main()
