"""How many threads: by the cores, then, where another number could be better, by a measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from cpulm.execution.measurement_cache import Ratios
from cpulm.execution.precision import CALM, FEWEST_ROUNDS, MOST_SECONDS, WINDOW_SECONDS, BlockShape, Tries
from cpulm.model.int8_linear import Quantizer, fits, linear
from cpulm.system.machine import Machine, choose

WORTH_IT = 0.95
"""Part of the time with one thread a core that another number has to stay under."""


def numbers_to_try(machine: Machine) -> tuple[int, ...]:
    """What the rules take, then what else may be fastest: all physical cores, slow ones included, and all
    logical ones; none beyond the container's quota."""
    most = machine.usable_logical if machine.cpu_quota is None else max(1, int(machine.cpu_quota))
    first = choose(machine).threads.value
    others = (min(machine.physical_cores, machine.usable_logical), machine.usable_logical)
    return tuple(dict.fromkeys((first, *(min(number, most) for number in others))))


def choose_threads(
    numbers: Sequence[int], block: BlockShape, quantizer: Quantizer | None, machine: str, remembered: Ratios
) -> tuple[int, str]:
    """One of ``numbers``, and the measured reason: a block's linear layers, forward and back.

    Measuring takes a third of a second for small models and a few for large ones or on a busy machine.
    Torch's number of threads is left as it was.

    Args:
        numbers: what to try; the first is taken unless another one is clearly faster.
        quantizer: of a model that trains in int8.
        machine: names everything but the shape that the times depend on.
        remembered: where times stand as parts of the first number's; those of a busy machine are not added.
    """
    keys = {number: f"{number} for {numbers[0]} threads; {block}; {machine}" for number in numbers[1:]}
    found = {number: remembered.find(key) for number, key in keys.items()}
    ratios = {number: ratio for number, ratio in found.items() if ratio is not None}
    when = ", as measured here earlier,"
    if len(ratios) < len(keys):
        ratios, calm = _measured_ratios(numbers, block, quantizer)
        when = "" if calm else ", on a busy machine,"
        for number, key in keys.items() if calm else ():
            remembered.keep(key, ratios[number])
    best = min(ratios, key=lambda number: ratios[number])
    taken = best if ratios[best] < WORTH_IT else numbers[0]
    return (
        taken,
        f"with {best} a block's linear layers took{when} {ratios[best]:.2f} of their time with {numbers[0]}",
    )


def _measured_ratios(
    numbers: Sequence[int], block: BlockShape, quantizer: Quantizer | None
) -> tuple[dict[int, float], bool]:
    """The time of the block's linear layers with each number of threads but the first over that with the
    first, and whether this process had the processor to itself meanwhile."""
    tries: dict[int, list[Tries]] = {}
    for number in numbers:
        with _threads(number):
            tries[number] = [Tries(*_layer(block.rows, *layer, quantizer)) for layer in block.layers]
    began, calm = time.perf_counter(), False
    while not calm and time.perf_counter() - began < MOST_SECONDS:
        calm = _window(tries) >= CALM
    seconds = {number: sum(layer.fastest for layer in layers) for number, layers in tries.items()}
    return {number: seconds[number] / seconds[numbers[0]] for number in numbers[1:]}, calm


def _layer(
    rows: int, inputs: int, outputs: int, quantizer: Quantizer | None
) -> tuple[Callable[[], Tensor], Tensor]:
    x = torch.randn(rows, inputs, requires_grad=True)
    weight = torch.randn(outputs, inputs, requires_grad=True)
    if quantizer is not None and fits(quantizer, inputs, outputs):
        return partial(linear, quantizer, x, weight, None), torch.randn(rows, outputs)
    return partial(torch.nn.functional.linear, x, weight), torch.randn(rows, outputs)


def _window(tries: dict[int, list[Tries]]) -> float:
    """Some rounds through all numbers, and the part of its threads' time that this process got."""
    began, began_work, rounds, asked = time.perf_counter(), time.process_time(), 0, 0.0
    while rounds < FEWEST_ROUNDS or time.perf_counter() - began < WINDOW_SECONDS:
        for number, layers in tries.items():
            with _threads(number):
                started = time.perf_counter()
                for layer in layers:
                    layer.once_more()
                asked += number * (time.perf_counter() - started)
        rounds += 1
    return (time.process_time() - began_work) / asked


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
