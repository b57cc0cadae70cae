"""Whether a model's linear layers train faster in int8 here: by instructions, then by a measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from cpulm.engine.sysinfo import INT8_SETS
from cpulm.model.quantized import Quantizer, TorchQuantizer, fits, linear
from cpulm.settings import ModelSettings, Settings

WORTH_IT = 0.8
"""Part of the fp32 time that int8 has to stay under: below that a difference in loss is paid for."""

MOST_ROWS = 2048
"""Tokens in a measurement: from there on the ratio hardly changes."""


@dataclass(frozen=True)
class BlockShape:
    """The linear layers of one block, and the tokens of a micro-batch.

    ``layers`` are (inputs, outputs).
    """

    layers: tuple[tuple[int, int], ...]
    rows: int


def block_shape(settings: Settings) -> BlockShape:
    """The shape of the model that ``settings`` describe."""
    m: ModelSettings = settings.model
    q, kv, inner = m.n_head * m.head_width, m.kv_heads * m.head_width, m.inner_width
    up = 2 * inner if m.mlp == "swiglu" else inner
    layers = ((m.n_embd, q + 2 * kv), (q, m.n_embd), (m.n_embd, up), (inner, m.n_embd))
    return BlockShape(layers, min(MOST_ROWS, settings.train.micro_batch_size * m.block_size))


def fast_int8(instruction_sets: Collection[str]) -> bool:
    """Whether the CPU has int8 products worth measuring."""
    return any(name in instruction_sets for name in INT8_SETS)


def choose_int8(block: BlockShape, quantizer: Quantizer | None) -> tuple[str, str]:
    """``int8`` or ``fp32``, and the measured reason: the block's linear layers in both, forward and back.

    Takes a tenth of a second to two, for models of 1 to 100 million parameters on two cores.
    """
    chosen = quantizer or TorchQuantizer()
    if not all(fits(chosen, *layer) for layer in block.layers):
        return "fp32", f"fp32: int8 wants widths that are multiples of {chosen.lanes}"
    fp32, int8 = 0.0, 0.0
    for inputs, outputs in block.layers:
        x = torch.randn(block.rows, inputs, requires_grad=True)
        weight = torch.randn(outputs, inputs, requires_grad=True)
        grad = torch.randn(block.rows, outputs)
        fp32 += _fastest(lambda: torch.nn.functional.linear(x, weight).backward(grad))  # noqa: B023
        int8 += _fastest(lambda: linear(chosen, x, weight, None).backward(grad))  # noqa: B023
    ratio = f"a block's linear layers took {int8 / fp32:.2f} of their fp32 time in int8"
    return ("int8", f"int8: {ratio}") if int8 < WORTH_IT * fp32 else ("fp32", f"fp32: {ratio}")


def _fastest(work: Callable[[], object], tries: int = 3) -> float:
    work()
    best = math.inf
    for _ in range(tries):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
