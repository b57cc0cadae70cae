"""The time of an update by kind of work, and the time of its matrix products alone.

    python benchmarks/breakdown.py [--preset 6x384] [--precision int8] [--steps 6] [--json]

A few updates on the Python library's sources are timed, then as many again under torch's profiler, whose
shares are given in milliseconds of the median update. "alone" is what the products of that row would take at
the rate of one large product in the same precision, measured a moment later: the bound that no passes over
memory, no rounding and no norms can bring it below.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from cpulm.data.prepare import prepare
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.execution.step_timing import fp32_peak
from cpulm.execution.stopwatch import best_seconds
from cpulm.execution.update import StepTimer, TrainingParts, training_update
from cpulm.model.counts import count
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.training.build import build_parts
from cpulm.ui.tables import rows

KINDS = {
    "linear layers": ("_Int8Linear", "_Int8LinearBackward", "aten::linear", "MmBackward0"),
    "head and loss": tuple(
        f"{name}HeadLoss{way}" for name in ("_Int8", "_Chunked") for way in ("", "Backward")
    ),
    "attention": ("_NativeAttention", "_NativeAttentionBackward"),
    "activation": ("_NativeActivation", "_NativeActivationBackward"),
    "norms": ("_NativeRMSNorm", "_NativeRMSNormBackward"),
    "optimizer": ("Optimizer.step#Muon.step", "Optimizer.step#AdamW.step"),
}
"""Names of the profiler's events; with the compiled kernels none of them is nested in another."""
LARGE = (4096, 512, 2816)
"""Rows, inputs and outputs of the product whose rate is used for int8."""


def product_rate(runtime: Runtime) -> float:
    """Operations a second of a large product in the run's precision."""
    if runtime.int8_kernels is None:
        return fp32_peak(runtime.device)
    kernels, (tokens, inputs, outputs) = runtime.int8_kernels, LARGE
    left = kernels.left(torch.randn(tokens, inputs))
    right, _ = kernels.right_both(torch.randn(outputs, inputs))
    out = torch.empty(tokens, outputs)
    seconds = best_seconds(lambda: kernels.product(left, right, out=out), runtime.device, 0.3)
    return 2.0 * tokens * inputs * outputs / seconds


def operations(settings: Settings, vocab_size: int) -> dict[str, float]:
    """Operations of the products in one update: six for each weight and token; attention's are in fp32."""
    model, tokens = settings.model, settings.tokens_per_step
    heads = 6.0 * model.n_layer * model.n_head * model.head_width * model.block_size
    return {
        "linear layers": 6.0 * count(model, vocab_size).non_embedding * tokens,
        "head and loss": 6.0 * vocab_size * model.n_embd * tokens,
        "attention": heads * tokens,
    }


def measured(
    parts: TrainingParts, runtime: Runtime, settings: Settings, steps: int
) -> tuple[float, dict[str, float]]:
    """Median seconds of an update of one micro-batch, and each kind's share."""

    def update(index: int) -> None:
        training_update(parts, (index,), runtime, settings.train.grad_clip, StepTimer())

    took = []
    for index in range(steps + 2):
        began = time.perf_counter()
        update(index)
        took.append(time.perf_counter() - began)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        began = time.perf_counter()
        for index in range(steps):
            update(index)
        whole = time.perf_counter() - began
    seconds = {event.key: event.cpu_time_total / 1e6 for event in profiled.key_averages()}
    shares = {kind: sum(seconds.get(name, 0.0) for name in names) / whole for kind, names in KINDS.items()}
    return statistics.median(took[2:]), {**shares, "all else": 1.0 - sum(shares.values())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="6x384")
    parser.add_argument("--precision", default="int8", choices=["int8", "fp32"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    settings = resolve(preset=asked.preset, assignments=[f"runtime.precision={asked.precision}"])
    runtime = choose_runtime(settings.runtime, read_machine(), settings.model)
    if runtime.kernels is None:
        raise SystemExit("without the compiled kernels the profiler's names are others")
    tokens = prepare(
        settings.data, emit=lambda _: None, should_stop=lambda: False, block_size=settings.model.block_size
    )
    seconds, shares = measured(build_parts(settings, tokens, runtime), runtime, settings, asked.steps)
    work, rate, fp32 = (
        operations(settings, tokens.vocab_size),
        product_rate(runtime),
        fp32_peak(runtime.device),
    )
    alone = {kind: of / (fp32 if kind == "attention" else rate) for kind, of in work.items()}
    result: dict[str, Any] = {
        "preset": asked.preset,
        "precision": runtime.precision,
        "step_seconds": seconds,
        "parts": {kind: share * seconds for kind, share in shares.items()},
        "alone": alone,
        "product_gops": rate / 1e9,
        "fp32_peak_gflops": fp32 / 1e9,
        "share_of_peak": sum(work.values()) / seconds / fp32,
    }
    if asked.json:
        print(json.dumps(result))
        return
    table: list[tuple[str, str, str | None, str | None]] = []
    for kind, part in result["parts"].items():
        bound = f"{1e3 * alone[kind]:.0f} ms" if kind in alone else None
        table.append((kind, f"{1e3 * part:.0f} ms", f"{part / seconds:.0%}", bound))
    table.append(("together", f"{1e3 * seconds:.0f} ms", None, f"{1e3 * sum(alone.values()):.0f} ms"))
    title = f"{asked.preset}, {runtime.precision}: {result['share_of_peak']:.0%} of {fp32 / 1e9:.0f} GFLOP/s"
    Console().print(rows(title, ("", "time", "share", "its products alone"), table))


if __name__ == "__main__":
    main()
