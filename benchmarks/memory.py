"""Peak memory of real training steps, compared with the estimate of ``cpulm.estimate.memory``.

    python benchmarks/memory.py             # presets and other shapes, each computed in three ways
    python benchmarks/memory.py --live      # bytes in use by torch's own count, beside the counted ones
    python benchmarks/memory.py --parts llm-trainer-small    # what the peak in int8 is made of

Every line is a process of its own: three updates of two micro-batches, peak resident size by getrusage (Linux
and macOS). The shapes that are no presets are those that the share of holes in the heap was measured on.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import torch

from cpulm.estimate import memory
from cpulm.estimate.memory import Arithmetic
from cpulm.estimate.preset_sizes import CHARACTERS
from cpulm.execution.runtime import choose_runtime
from cpulm.execution.step_timing import measure_step
from cpulm.model.counts import count
from cpulm.settings import Settings, changed
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.training.build import build_random_parts

WAYS = {"int8": ("int8", "auto"), "fp32": ("fp32", "auto"), "torch": ("fp32", "off")}
"""Precision and kernels."""

GPT2 = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "bias": True, "qk_norm": False}
WIDE = {"n_layer": 8, "n_head": 8, "n_kv_head": 4, "n_embd": 512, "block_size": 512, "n_inner": 2048}

# name: (settings of the model, vocab_size, micro_batch_size)
OTHERS: dict[str, tuple[dict[str, Any], int, int]] = {
    "10-layers": ({"n_layer": 10, "n_head": 5, "n_embd": 320, "block_size": 192}, 256, 24),
    "gqa": ({"n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 256, "block_size": 512}, 4096, 8),
    "gpt2": ({**GPT2, "n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 512}, 16384, 4),
    "wide": (WIDE, 16384, 4),
    "wide, recomputing": ({**WIDE, "activation_checkpointing": True}, 16384, 4),
}
PRESETS = ("4x192", "6x256", "6x384", "nanogpt-char", "llm-trainer-small")


def peak_bytes() -> int:
    """The process's peak resident size."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def described(name: str, way: str) -> tuple[Settings, int]:
    """The settings of a preset or another shape, computed that way, and its vocabulary's size."""
    precision, kernels = WAYS[way]
    if name in OTHERS:
        model, vocab_size, batch = OTHERS[name]
        settings = resolve()
        settings = changed(
            settings,
            model=changed(settings.model, **model),
            train=changed(settings.train, micro_batch_size=batch),
        )
    else:
        settings = resolve(preset=name)
        vocab_size = settings.data.vocab_size or CHARACTERS
    runtime = changed(settings.runtime, precision=precision, kernels=kernels)
    return changed(settings, runtime=runtime), vocab_size


def measure(name: str, way: str, live: bool, imports: bool) -> None:
    """Train three steps and print the peak of bytes resident or in use, or those resident before."""
    if imports:
        print(peak_bytes())
        return
    settings, vocab_size = described(name, way)
    if not live:
        train_three(settings, vocab_size)
        print(peak_bytes())
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        train_three(settings, vocab_size)
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    print(round(np.cumsum([count for _, count in changes]).max()))


def train_three(settings: Settings, vocab_size: int) -> None:
    runtime = choose_runtime(settings.runtime, read_machine())
    measure_step(build_random_parts(settings, vocab_size, runtime), runtime, settings.train)


def show_parts(name: str) -> None:
    """Print the parts of a shape's peak in int8."""

    def run(*flags: str) -> int:
        command = [sys.executable, __file__, "--measure", name, "int8", *flags]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    settings, vocab_size = described(name, "int8")
    counts = count(settings.model, vocab_size)
    muon = counts.by_part["attention"] + counts.by_part["mlp"] if settings.train.optimizer == "muon" else 0
    standing = 4 * (4 * counts.total - muon)
    base, live, peak = run("--imports"), run("--live"), run()
    lines = {
        "the process with torch and cpulm imported": base,
        "weights, gradients and averages": standing,
        "most in use beside them": live - standing,
        "libraries' own rooms, and holes in the heap": peak - base - live,
        "peak": peak,
    }
    for what, size in lines.items():
        print(f"{what:<45} {size / 2**20:>6.0f} MiB")


def estimate(name: str, way: str, live: bool) -> int:
    settings, vocab_size = described(name, way)
    machine = read_machine()
    lanes = memory.vector_lanes(machine.instruction_sets) if machine.compiler and way != "torch" else 0
    estimated = memory.training_bytes if live else memory.memory_bytes
    return estimated(settings, vocab_size, Arithmetic(int8=way == "int8", lanes=lanes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--live", action="store_true", help="bytes in use instead of resident ones")
    parser.add_argument("--imports", action="store_true", help="with --measure: before anything is trained")
    parser.add_argument("--parts", metavar="NAME", help="the parts of one shape's peak in int8")
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "WAY"), help="one line, in this process")
    parser.add_argument("names", nargs="*", default=[*OTHERS, *PRESETS], metavar="NAME")
    arguments = parser.parse_args()
    if arguments.measure:
        name, way = arguments.measure
        measure(name, way, arguments.live, arguments.imports)
        return
    if arguments.parts:
        show_parts(arguments.parts)
        return
    print(f"{'shape':<20} {'way':<6} {'measured':>9} {'estimate':>9}  ratio", flush=True)
    for name in arguments.names:
        for way in WAYS:
            flags = ["--live"] if arguments.live else []
            command = [sys.executable, __file__, "--measure", name, way, *flags]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured, counted = int(output.split()[-1]), estimate(name, way, arguments.live)
            print(
                f"{name:<20} {way:<6} {measured / 2**20:>6.0f} MB {counted / 2**20:>6.0f} MB  "
                f"{counted / measured:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
