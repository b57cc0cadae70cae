"""Compression for the way between processes: how far off one value is, and that nothing is lost for good."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_runs import SMALL
from worlds import in_world

from cpulm.distributed.compression import (
    BLOCK,
    ErrorFeedback,
    Quantize,
    compress,
    compressed_bytes,
    restore,
)
from cpulm.distributed.world import World
from cpulm.execution.runtime import choose_runtime
from cpulm.execution.update import StepTimer, accumulate_gradients
from cpulm.native.int8 import Int8Kernels
from cpulm.native.kernels import Kernels
from cpulm.native.library import load
from cpulm.settings.distributed_settings import Compression, DistributedSettings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.training.build import build_random_parts

COUNTS = (0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 5)


def values_of(count: int, seed: int = 0) -> torch.Tensor:
    """Values whose sizes differ by factors of thousands between blocks."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-3, 3, -(-count // BLOCK)).repeat_interleave(BLOCK)[:count]
    return torch.randn(count, generator=generator) * sizes


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    ("kind", "each", "block"), [("none", 4, 0), ("bf16", 2, 0), ("int8", 1, 4), ("int2", 0, 68)]
)
def test_the_bytes_are_as_many_as_announced(kind: Compression, each: int, block: int, count: int) -> None:
    content = compress(values_of(count), kind)
    assert content.dtype == torch.uint8
    assert content.numel() == compressed_bytes(count, kind) == each * count + block * -(-count // BLOCK)
    assert restore(content, count, kind).shape == (count,)
    with pytest.raises(ValueError, match="bytes are not"):
        restore(content, count + BLOCK, kind)


def test_uncompressed_values_are_the_same() -> None:
    values = values_of(700)
    assert torch.equal(restore(compress(values, "none"), 700, "none"), values)


def test_bf16_is_off_by_a_256th_of_a_value() -> None:
    values = values_of(1000)
    error = (restore(compress(values, "bf16"), 1000, "bf16") - values).abs()
    assert (error <= values.abs() / 256).all()
    assert error.any()


@pytest.fixture(params=["torch", "kernels"])
def quantize(request: pytest.FixtureRequest) -> Quantize | None:
    if request.param == "torch":
        return None
    library = request.getfixturevalue("kernels_library")
    return Int8Kernels(load(library), Kernels(library).lanes).left


def test_int8_is_off_by_half_a_level_of_its_own_block(quantize: Quantize | None) -> None:
    values = values_of(4 * BLOCK)
    error = (restore(compress(values, "int8", quantize), 4 * BLOCK, "int8") - values).abs().view(4, BLOCK)
    largest = values.view(4, BLOCK).abs().amax(1, keepdim=True)
    assert (error <= largest / 254 * 1.0001).all()
    assert error.any()


@pytest.mark.parametrize("count", [BLOCK, 100])
def test_int2_has_four_levels_and_the_error_that_theory_says(count: int) -> None:
    values = torch.randn(200, count, generator=torch.Generator().manual_seed(0)) * 1e-4
    restored = restore(compress(values, "int2"), count, "int2")
    sizes = values.square().mean(1, keepdim=True).sqrt()  # of a block alone, without its padding
    levels = (restored / (0.996 * sizes)).unique()
    assert torch.allclose(levels.round(decimals=3).unique(), torch.tensor([-1.5, -0.5, 0.5, 1.5]))
    error = ((restored - values).square().mean() / values.square().mean()).item()
    assert error == pytest.approx(0.1188, abs=0.003)  # Max, 1960, table I: four levels, normal distribution


@pytest.mark.parametrize("kind", ["int8", "int2"])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_zeros_stay_zeros_and_what_is_not_finite_is_seen(
    kind: Compression, bad: float, quantize: Quantize | None
) -> None:
    values = torch.zeros(2 * BLOCK)
    assert not restore(compress(values, kind, quantize), 2 * BLOCK, kind).any()
    values[3] = bad
    first, second = restore(compress(values, kind, quantize), 2 * BLOCK, kind).view(2, BLOCK)
    assert not first.isfinite().any()
    assert second.isfinite().all()


@pytest.mark.parametrize("kind", ["none", "bf16", "int8", "int2"])
@pytest.mark.parametrize("count", [5, BLOCK, 3 * BLOCK + 5])
def test_rows_are_compressed_each_by_itself(kind: Compression, count: int, quantize: Quantize | None) -> None:
    rows = values_of(3 * count).view(3, count)
    content = compress(rows, kind, quantize)
    for row, one in zip(rows, content, strict=True):
        assert torch.equal(one, compress(row, kind, quantize))
    assert torch.equal(restore(content, count, kind)[1], restore(content[1], count, kind))
    rows.zero_()
    assert content.any(), "what is sent does not change with the values"


@pytest.mark.parametrize("kind", ["bf16", "int8", "int2"])
def test_over_the_rounds_the_feedback_sends_the_truth(kind: Compression) -> None:
    count, rounds = 2 * BLOCK + 7, 50
    feedback = ErrorFeedback(count, kind)
    given, sent, plain = (torch.zeros(count, dtype=torch.float64) for _ in range(3))
    direction = values_of(count)
    for number in range(rounds):
        values = direction + 0.1 * values_of(count, number)
        given += values
        plain += restore(compress(values, kind), count, kind)
        sent += restore(feedback.compress(values.clone()), count, kind)
    torch.testing.assert_close(sent + feedback.lost, given, rtol=1e-4, atol=1e-4)
    assert (sent - given).norm() < 0.4 * (plain - given).norm()


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "none"), ("bf16", "none"), ("int8", "int8")])
def test_a_run_in_int8_sends_int8_unless_told_otherwise(precision: str, kind: Compression) -> None:
    assert DistributedSettings().sent_as(precision) == kind
    assert DistributedSettings(compression="bf16").sent_as(precision) == "bf16"
    assert DistributedSettings(mode="diloco").sent_as(precision) == "int2"


def test_gradients_whose_rounding_would_be_lost_are_not_sent_in_two_bits() -> None:
    with pytest.raises(ValueError, match="compression int2 needs mode diloco"):
        DistributedSettings(compression="int2")
    assert DistributedSettings(compression="int2", mode="diloco").sent_as("fp32") == "int2"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_update_sends_as_its_precision_has_it(precision: str) -> None:
    exchanged = [0, 0]

    class Noted(World):
        def start_exchange(self, received: torch.Tensor, sent: torch.Tensor) -> Any:
            exchanged[self.rank] += 1
            return super().start_exchange(received, sent)

    def update(world: World) -> None:
        small = [*SMALL, f"runtime.precision={precision}", "runtime.kernels=off"]
        settings = resolve(assignments=small)
        runtime = choose_runtime(settings.runtime, read_machine(), settings.model)
        noted = Noted(world.rank, world.size, group=world._group)
        parts = build_random_parts(settings, 65, runtime, noted)
        accumulate_gradients(parts, [0], runtime, StepTimer())

    in_world(2, update)
    assert all((count > 0) == (precision == "int8") for count in exchanged)
