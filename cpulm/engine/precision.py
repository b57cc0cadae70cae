"""Whether a model's linear layers train faster in int8 here: by instructions, then by a measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cpulm.engine.remembered import Ratios
from cpulm.engine.sysinfo import INT8_SETS
from cpulm.model.quantized import Quantizer, TorchQuantizer, fits, linear
from cpulm.settings import ModelSettings, Settings

WORTH_IT = 0.8
"""Part of the fp32 time that int8 has to stay under: below that a difference in loss is paid for."""

MOST_ROWS = 2048
"""Tokens in a measurement: from there on the ratio hardly changes."""


FEWEST_ROUNDS, MOST_ROUNDS, ENOUGH_SECONDS = 4, 13, 0.7
"""Of a measurement: rounds through the layers, and the seconds after which the fewest are enough."""


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


def choose_int8(
    block: BlockShape, quantizer: Quantizer | None, machine: str, remembered: Ratios
) -> tuple[str, str]:
    """``int8`` or ``fp32``, and the measured reason: the block's linear layers in both, forward and back.

    Measuring takes a tenth of a second to two, for models of 1 to 100 million parameters on two cores.

    Args:
        machine: names everything but the shape that the times depend on: what was measured under the same
            name for the same shape is not measured again.
        remembered: where the ratios stand.
    """
    chosen = quantizer or TorchQuantizer()
    if not all(fits(chosen, *layer) for layer in block.layers):
        return "fp32", f"fp32: int8 wants widths that are multiples of {chosen.lanes}"
    layers = ", ".join(f"{inputs} x {outputs}" for inputs, outputs in block.layers)
    key = f"{machine}; {layers}; {block.rows} rows"
    ratio = remembered.find(key)
    when = "took" if ratio is None else "took, as measured here earlier,"
    if ratio is None:
        ratio = _measured_ratio(block, chosen)
        remembered.keep(key, ratio)
    precision = "int8" if ratio < WORTH_IT else "fp32"
    return precision, f"{precision}: a block's linear layers {when} {ratio:.2f} of their fp32 time in int8"


def _measured_ratio(block: BlockShape, quantizer: Quantizer) -> float:
    """The time of the block's linear layers in int8 over that in fp32, each the fastest of its tries.

    All layers are tried in turn, round by round: a moment in which the machine is busy falls on one round.
    """
    works: list[tuple[Callable[[], object], Callable[[], object]]] = []
    for inputs, outputs in block.layers:
        x = torch.randn(block.rows, inputs, requires_grad=True)
        weight = torch.randn(outputs, inputs, requires_grad=True)
        grad = torch.randn(block.rows, outputs)
        in_fp32 = partial(_forward_and_back, partial(torch.nn.functional.linear, x, weight), grad)
        in_int8 = partial(_forward_and_back, partial(linear, quantizer, x, weight, None), grad)
        works.append((in_fp32, in_int8))
    best = [[math.inf, math.inf] for _ in works]
    end, rounds = time.perf_counter() + ENOUGH_SECONDS, 0
    while rounds < FEWEST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() < end):
        for fastest, pair in zip(best, works, strict=True):
            for which, work in enumerate(pair):
                seconds = _seconds(work)
                if rounds:  # the first one warms up
                    fastest[which] = min(fastest[which], seconds)
        rounds += 1
    return sum(int8 for _, int8 in best) / sum(fp32 for fp32, _ in best)


def _forward_and_back(layer: Callable[[], Tensor], grad: Tensor) -> None:
    torch.autograd.backward(layer(), grad)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
