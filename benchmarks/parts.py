"""The parts of a training step compared with what they replace, in turns in one process.

    python benchmarks/parts.py [--only muon,attention] [--rounds 15] [--threads 2] [--json]

- layer: a linear layer's forward product from rounded factors, by our kernels and by torch's int8 product
  with the scaling of its sums; beside it what rounding its input takes;
- muon: an update of several matrices in int8 and in float32;
- head: the head with its loss and gradients in int8 and in float32;
- attention, norm, swiglu, relu2, dropout: forward and backward in the compiled kernels and in torch's
  functions, as a model without kernels computes them;
- embedding: adding the gradient of one more micro-batch, of the rows met and of the whole table.

Milliseconds are the fastest and the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from cpulm.model import fused, int8_head_loss, native_ops
from cpulm.model.int8_linear import Quantizer, TorchQuantizer
from cpulm.model.modules import Embedding, RMSNorm
from cpulm.model.transformer import Attention, rope_tables
from cpulm.native.int8 import Int8Kernels
from cpulm.native.kernels import Kernels
from cpulm.native.library import compile_kernels
from cpulm.optim.muon import Muon
from cpulm.settings import ModelSettings
from cpulm.system.allocator import keep_freed_memory
from cpulm.system.software import find_compiler
from cpulm.ui.tables import rows

LAYERS = [(3072, 384, 1152), (3072, 384, 2048), (3072, 1024, 384), (4096, 512, 2816)]
"""Tokens, inputs, outputs."""
MATRICES = [(8, 192, 512), (12, 384, 1024), (12, 1024, 384), (36, 64, 192), (36, 64, 384)]
HEADS = [(2048, 192, 2048), (4096, 384, 8192), (1024, 256, 32000)]
"""Tokens, width, entries."""

Work = dict[str, Callable[[], object]]


def kernels_of(folder: Path) -> Kernels:
    compiler, problem = find_compiler()
    if compiler is None:
        raise SystemExit(f"no kernels to measure: {problem}")
    return Kernels(compile_kernels(compiler.command, compiler.version, "this machine", folder)[0])


def int8_of(kernels: Kernels) -> Int8Kernels:
    if kernels.int8 is None:
        raise SystemExit(
            "no int8 products that the compiler knows on this CPU: --only attention,norm and so on"
        )
    return kernels.int8


def layer(every: Kernels, tokens: int, inputs: int, outputs: int) -> tuple[Work, float]:
    """The product of a linear layer in both precisions, the rounding of its input, and its operations."""
    kernels = int8_of(every)
    x, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs)

    def of(quantizer: Quantizer) -> Callable[[], object]:
        left, (transposed, _) = quantizer.left_and_right(x)[0], quantizer.right_both(weight)
        return lambda: quantizer.product(left, transposed)

    ways: Work = {"ours": of(kernels), "torch": of(TorchQuantizer())}
    ways["rounding"] = lambda: kernels.left_and_right(x)
    return ways, 2.0 * tokens * inputs * outputs


def muon(every: Kernels, count: int, height: int, width: int) -> tuple[Work, float]:
    def of(kernels: Int8Kernels | None) -> Callable[[], object]:
        matrices = [torch.nn.Parameter(torch.randn(height, width)) for _ in range(count)]
        for matrix in matrices:
            matrix.grad = torch.randn(height, width)
        return Muon(matrices, kernels=kernels).step

    return {"ours": of(int8_of(every)), "torch": of(None)}, 0.0


def head(every: Kernels, tokens: int, width: int, entries: int) -> tuple[Work, float]:
    kernels = int8_of(every)
    x = torch.randn(tokens, width, requires_grad=True)
    weight = (0.05 * torch.randn(entries, width)).requires_grad_()
    targets = torch.randint(entries, (tokens,))

    def of(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), (x, weight))

    ways: Work = {
        "ours": of(lambda: int8_head_loss.head_loss(kernels, x, weight, targets)),
        "torch": of(lambda: fused.head_loss(x, weight, targets)),
    }
    return ways, 6.0 * tokens * width * entries


def passes(module: nn.Module, equipped: nn.Module, *inputs: torch.Tensor) -> Work:
    """Forward and backward through a module of ours with kernels and without."""

    def of(part: nn.Module) -> Callable[[], object]:
        wanted = [p for p in (*part.parameters(), *inputs) if p.requires_grad]
        return lambda: torch.autograd.grad(part(*inputs).sum(), wanted)

    return {"ours": of(equipped), "torch": of(module)}


class Attend(nn.Module):
    """Norm, rotation and attention of a joint projection, without the linear layers."""

    def __init__(self, heads: int, tokens: int, width: int) -> None:
        super().__init__()
        settings = ModelSettings(n_head=heads, n_embd=heads * width, block_size=tokens)
        self.attention = Attention(settings, 0)
        self.attention.qkv = self.attention.out = nn.Identity()  # type: ignore[assignment]
        self.rope = rope_tables(tokens, width, 10_000.0)

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.attention(qkv, self.rope, None)
        return found


def attention(kernels: Kernels, rows: int, heads: int, tokens: int, width: int) -> tuple[Work, float]:
    qkv = torch.randn(rows, tokens, 3 * heads * width, requires_grad=True)
    plain, equipped = Attend(heads, tokens, width), Attend(heads, tokens, width)
    equipped.attention.kernels = kernels
    return passes(plain, equipped, qkv), 0.0


def norm(kernels: Kernels, tokens: int, width: int) -> tuple[Work, float]:
    plain, equipped = RMSNorm(width, 1e-6), RMSNorm(width, 1e-6)
    equipped.kernels = kernels
    return passes(plain, equipped, torch.randn(tokens, width, requires_grad=True)), 0.0


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.forward = function


def swiglu(kernels: Kernels, tokens: int, width: int) -> tuple[Work, float]:
    x = torch.randn(tokens, 2 * width, requires_grad=True)
    return passes(Function(fused.swiglu), Function(partial(native_ops.swiglu, kernels)), x), 0.0


def relu2(kernels: Kernels, tokens: int, width: int) -> tuple[Work, float]:
    x = torch.randn(tokens, width, requires_grad=True)
    plain = Function(lambda x: torch.relu(x).square())
    return passes(plain, Function(partial(native_ops.relu2, kernels)), x), 0.0


def dropout(kernels: Kernels, tokens: int, width: int) -> tuple[Work, float]:
    x = torch.randn(tokens, width, requires_grad=True)
    ours = Function(lambda x: native_ops.dropout(kernels, x, 0.2))
    return passes(nn.Dropout(0.2), ours, x), 0.0


def embedding(_: Kernels, entries: int, width: int, tokens: int) -> tuple[Work, float]:
    idx = torch.randint(entries, (tokens,))

    def of(table: nn.Embedding) -> Callable[[], object]:
        table.weight.grad = torch.zeros(entries, width)
        return lambda: table(idx).sum().backward()

    return {"ours": of(Embedding(entries, width)), "torch": of(nn.Embedding(entries, width))}, 0.0


PARTS: dict[str, tuple[Callable[..., tuple[Work, float]], Sequence[tuple[int, ...]]]] = {
    "layer": (layer, LAYERS),
    "muon": (muon, MATRICES),
    "head": (head, HEADS),
    "attention": (attention, [(16, 6, 256, 64), (16, 3, 128, 64)]),
    "norm": (norm, [(4096, 384)]),
    "swiglu": (swiglu, [(4096, 1024)]),
    "relu2": (relu2, [(4096, 1024)]),
    "dropout": (dropout, [(4096, 384)]),
    "embedding": (embedding, [(32_000, 256, 1024)]),
}
"""How to build each part, and its shapes."""


def measured(ways: Work, rounds: int) -> dict[str, dict[str, float]]:
    """Fastest and median milliseconds of each variant, in turns in every round; the first is a warm-up."""
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
    parser.add_argument("--only", help="names of parts, separated by commas")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    wanted = asked.only.split(",") if asked.only else list(PARTS)
    for name in wanted:
        if name not in PARTS:
            parser.error(f"--only {name}: there are {', '.join(PARTS)}")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    keep_freed_memory()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        kernels = kernels_of(Path(folder))
        for what in wanted:
            make, shapes = PARTS[what]
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
