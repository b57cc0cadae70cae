"""Whether a model's linear layers train faster in int8 here: by instructions, then by a measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cpulm.execution.measurement_cache import Ratios
from cpulm.model.int8_linear import Quantizer, TorchQuantizer, fits, linear
from cpulm.settings import Settings
from cpulm.system.machine import INT8_SETS

WORTH_IT = 0.8
"""Part of the fp32 time that int8 has to stay under: below that a difference in loss is paid for."""

MOST_ROWS = 2048
"""Tokens in a measurement: from there on the ratio hardly changes."""

FEWEST_ROUNDS, WINDOW_SECONDS, MOST_SECONDS = 5, 0.3, 3.0
"""Of a measurement: rounds through the layers and time in a window, and the time after which no window that
was disturbed is followed by another."""

CALM = 0.9
"""Part of its threads' time that a window has to get for a measurement worth remembering. They are busy all
the while, waiting for each other included. That tries agree is no sign of it: with other programs on both of
two cores they did, and said 2.4 where it was 0.5 a minute later."""


@dataclass(frozen=True)
class BlockShape:
    """The linear layers of one block, and the tokens of a micro-batch.

    ``layers`` are (inputs, outputs).
    """

    layers: tuple[tuple[int, int], ...]
    rows: int


def block_shape(settings: Settings) -> BlockShape:
    """The shape of the model that ``settings`` describe."""
    layers = tuple((layer.inputs, layer.outputs) for layer in settings.model.linear_layers)
    return BlockShape(layers, min(MOST_ROWS, settings.train.micro_batch_size * settings.model.block_size))


def fast_int8(instruction_sets: Collection[str]) -> bool:
    """Whether the CPU has int8 products worth measuring."""
    return any(name in instruction_sets for name in INT8_SETS)


def choose_int8(
    block: BlockShape, quantizer: Quantizer | None, machine: str, remembered: Ratios
) -> tuple[str, str]:
    """``int8`` or ``fp32``, and the measured reason: the block's linear layers in both, forward and back.

    Measuring takes a third of a second for small models and a few for large ones or on a busy machine.

    Args:
        machine: names everything but the shape that the times depend on: what was measured under the same
            name for the same shape is not measured again.
        remembered: where the ratios stand; one that was measured on a busy machine is not added.
    """
    chosen = quantizer or TorchQuantizer()
    if not all(fits(chosen, *layer) for layer in block.layers):
        return "fp32", f"fp32: int8 wants widths that are multiples of {chosen.lanes}"
    key = ratio_key(block, machine)
    ratio = remembered.find(key)
    when = ", as measured here earlier,"
    if ratio is None:
        ratio, calm = _measured_ratio(block, chosen)
        when = "" if calm else ", on a busy machine,"
        if calm:
            remembered.keep(key, ratio)
    precision = "int8" if ratio < WORTH_IT else "fp32"
    said = f"a block's linear layers took{when} {ratio:.2f} of their fp32 time in int8"
    return precision, f"{precision}: {said}"


def ratio_key(block: BlockShape, machine: str) -> str:
    """Under what the ratio of ``block`` on ``machine`` is remembered."""
    layers = ", ".join(f"{inputs} x {outputs}" for inputs, outputs in block.layers)
    return f"{machine}; {layers}; {block.rows} rows"


def _measured_ratio(block: BlockShape, quantizer: Quantizer) -> tuple[float, bool]:
    """The time of the block's linear layers in int8 over that in fp32, each the fastest of its tries, and
    whether this process had the processor to itself meanwhile.

    All layers are tried in turn, round by round: a moment in which the machine is busy falls on one round.
    """
    in_fp32: list[Tries] = []
    in_int8: list[Tries] = []
    for inputs, outputs in block.layers:
        x = torch.randn(block.rows, inputs, requires_grad=True)
        weight = torch.randn(outputs, inputs, requires_grad=True)
        grad = torch.randn(block.rows, outputs)
        in_fp32.append(Tries(partial(torch.nn.functional.linear, x, weight), grad))
        in_int8.append(Tries(partial(linear, quantizer, x, weight, None), grad))
    began, calm = time.perf_counter(), False
    while not calm and time.perf_counter() - began < MOST_SECONDS:
        calm = _window((*in_fp32, *in_int8)) >= CALM
    return sum(tries.fastest for tries in in_int8) / sum(tries.fastest for tries in in_fp32), calm


class Tries:
    """The fastest of all tries of a layer, forward and back, but for the first one, which warms up."""

    fastest = math.inf

    def __init__(self, layer: Callable[[], Tensor], grad: Tensor) -> None:
        self._layer, self._grad = layer, grad
        self.once_more()
        self.fastest = math.inf

    def once_more(self) -> None:
        began = time.perf_counter()
        _backward(self._layer(), self._grad)
        self.fastest = min(self.fastest, time.perf_counter() - began)


class _Given(torch.autograd.Function):
    """A scalar whose gradient is what is given."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad, None


def _backward(y: Tensor, grad: Tensor) -> None:
    """As ``y.backward(grad)``, which imports sympy: half a second of a first run, and 30 MB of all of it."""
    scalar: Tensor = _Given.apply(y, grad)  # type: ignore[no-untyped-call]  # torch leaves it so
    torch.autograd.backward(scalar)


def _window(layers: Sequence[Tries]) -> float:
    """Some rounds through the layers, and the part of its threads' time that this process got."""
    began, began_work, rounds = time.perf_counter(), time.process_time(), 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() - began < WINDOW_SECONDS:
        for tries in layers:
            tries.once_more()
        rounds += 1
    given = (time.perf_counter() - began) * torch.get_num_threads()
    return (time.process_time() - began_work) / given
