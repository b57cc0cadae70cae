"""The parts of training in int8 beside what they replace, in turns in one process.

    python benchmarks/products.py [--rounds 15] [--threads 2] [--json]

Three kinds of rows: a linear layer's forward product from rounded factors, by our kernels and by torch's int8
product with the scaling of its sums; Muon's update of several matrices in int8 and in float32; the head
with its loss and gradients in int8 and in float32. Milliseconds are the fastest and the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cpulm.engine.allocator import keep_freed_memory
from cpulm.engine.machine.software import find_compiler
from cpulm.model import fused, quantized_head
from cpulm.model.quantized import Quantizer, TorchQuantizer
from cpulm.native.int8 import Int8Kernels
from cpulm.native.kernels import Kernels
from cpulm.native.library import compiled
from cpulm.optim.muon import Muon
from cpulm.ui.tables import rows

LAYERS = [(3072, 384, 1152), (3072, 384, 2048), (3072, 1024, 384), (4096, 512, 2816)]
"""Tokens, inputs, outputs."""
MATRICES = [(8, 192, 512), (12, 384, 1024), (12, 1024, 384), (36, 64, 192), (36, 64, 384)]
HEADS = [(2048, 192, 2048), (4096, 384, 8192), (1024, 256, 32000)]
"""Tokens, width, entries."""

Work = dict[str, Callable[[], object]]


def kernels_of(folder: Path) -> Int8Kernels:
    compiler, problem = find_compiler()
    if compiler is None:
        raise SystemExit(f"no kernels to measure: {problem}")
    found = Kernels(compiled(compiler.command, compiler.version, "this machine", folder)).int8
    if found is None:
        raise SystemExit("this CPU has no int8 products that the compiler knows")
    return found


def layer(kernels: Int8Kernels, tokens: int, inputs: int, outputs: int) -> tuple[Work, float]:
    """The product of a linear layer both ways, what rounding its input takes, and its operations."""
    x, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs)

    def of(quantizer: Quantizer) -> Callable[[], object]:
        left, (transposed, _) = quantizer.left_and_right(x)[0], quantizer.right_both(weight)
        return lambda: quantizer.product(left, transposed)

    ways: Work = {"ours": of(kernels), "torch": of(TorchQuantizer())}
    ways["rounding"] = lambda: kernels.left_and_right(x)
    return ways, 2.0 * tokens * inputs * outputs


def muon(kernels: Int8Kernels, count: int, height: int, width: int) -> tuple[Work, float]:
    def of(kernels: Int8Kernels | None) -> Callable[[], object]:
        matrices = [torch.nn.Parameter(torch.randn(height, width)) for _ in range(count)]
        for matrix in matrices:
            matrix.grad = torch.randn(height, width)
        return Muon(matrices, kernels=kernels).step

    return {"ours": of(kernels), "torch": of(None)}, 0.0


def head(kernels: Int8Kernels, tokens: int, width: int, entries: int) -> tuple[Work, float]:
    x = torch.randn(tokens, width, requires_grad=True)
    weight = (0.05 * torch.randn(entries, width)).requires_grad_()
    targets = torch.randint(entries, (tokens,))

    def of(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), (x, weight))

    ways: Work = {
        "ours": of(lambda: quantized_head.head_loss(kernels, x, weight, targets)),
        "torch": of(lambda: fused.head_loss(x, weight, targets)),
    }
    return ways, 6.0 * tokens * width * entries


def measured(ways: Work, rounds: int) -> dict[str, dict[str, float]]:
    """Fastest and median milliseconds of each way, one after the other in every round; the first warms up."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            began = time.perf_counter()
            work()
            if number:
                took[name].append(1e3 * (time.perf_counter() - began))
    return {name: {"fastest": min(all_), "median": statistics.median(all_)} for name, all_ in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    keep_freed_memory()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        kernels = kernels_of(Path(folder))
        for what, make, shapes in (("layer", layer, LAYERS), ("muon", muon, MATRICES), ("head", head, HEADS)):
            for shape in shapes:
                ways, operations = make(kernels, *shape)
                took = measured(ways, asked.rounds)
                rate = operations / took["ours"]["fastest"] / 1e6
                results.append({"what": what, "shape": shape, "ms": took, "gops": rate})
    if asked.json:
        print(json.dumps({"threads": torch.get_num_threads(), "results": results}))
        return
    columns = ("what", "shape", "ours", "torch", "ratio", "GOP/s", "rounding")
    Console().print(rows("fastest of each", columns, [told(row) for row in results]))


def told(row: dict[str, Any]) -> tuple[object, ...]:
    fastest = {name: took["fastest"] for name, took in row["ms"].items()}
    return (
        row["what"],
        " x ".join(map(str, row["shape"])),
        f"{fastest['ours']:.2f} ms",
        f"{fastest['torch']:.2f} ms",
        f"{fastest['ours'] / fastest['torch']:.2f}",
        f"{row['gops']:.0f}" if row["gops"] else None,
        f"{fastest['rounding']:.2f} ms" if "rounding" in fastest else None,
    )


if __name__ == "__main__":
    main()
