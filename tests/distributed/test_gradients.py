"""Sums of gradients over processes: the same for any buckets, and sent while the backward pass goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import in_world

from cpulm.distributed import gradients
from cpulm.distributed.gradients import GradientSum, OwnedTensors
from cpulm.distributed.world import World
from cpulm.errors import LostPeerError
from cpulm.settings.distributed_settings import Compression

ROWS = torch.randn(4, 300, generator=torch.Generator().manual_seed(3))


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(4)
    shapes = [(300, 20), (20, 20), (20,), (20, 5), (7,)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def loss_of(params: list[torch.nn.Parameter], rows: Tensor) -> Tensor:
    """The last parameter is not used."""
    first, second, bias, last, _ = params
    return ((rows @ first) @ second + bias).tanh().matmul(last).square().sum()


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three buckets: the first parameter is larger than one."""
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 1000)


@pytest.mark.parametrize(("sent_as", "off"), [("none", 1e-5), ("bf16", 1e-2), ("int8", 2e-2)])
@pytest.mark.parametrize("stopped", [False, True], ids=["whole", "stopped in one process"])
def test_every_process_has_the_sum_of_all(sent_as: Compression, off: float, stopped: bool) -> None:
    """Two updates, in the second of which each process has one micro-batch and half of another."""
    found: dict[int, list[Any]] = {}

    def update(world: World) -> None:
        params = parameters()
        exchange = GradientSum(world, params, sent_as)
        for batches in ([0], [1, 2, 3]):
            for p in params:
                p.grad = None
            pieces = exchange.pieces(batches, 4)
            for number, piece in enumerate(pieces):
                loss_of(params, ROWS[piece.begin : piece.end] * (1 + piece.index)).backward()
                if stopped and world.rank == 1 and number == 0:
                    break
            totals = exchange.sum([float(len(pieces))])
        found[world.rank] = [totals, *(p.grad for p in params)]

    in_world(2, update)
    assert found[0][0] == found[1][0] == [4.0]
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        assert torch.equal(one, other)
    if not stopped:
        alone = parameters()
        sum(loss_of(alone, ROWS * factor) for factor in (2, 3, 4)).backward()  # type: ignore[union-attr]
        for p, grad in zip(alone, found[0][1:], strict=True):
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(grad, expected, rtol=off, atol=off * float(expected.abs().max()))


def test_gradients_are_sent_before_the_backward_pass_ends() -> None:
    events: list[str] = []

    class Noted(World):
        def start_sum(self, tensor: Tensor) -> Any:
            events.append(f"{tensor.numel()} values sent")
            return super().start_sum(tensor)

    def update(world: World) -> None:
        params = parameters()[:4]
        noted = Noted(world.rank, world.size, group=world._group)
        exchange = GradientSum(noted if world.rank == 0 else world, params)
        [piece] = exchange.pieces([0], 4)
        hidden = ROWS[piece.begin : piece.end] @ params[0]
        if world.rank == 0:
            hidden.register_hook(lambda _: events.append("the last product begins"))
        (hidden @ params[1] + params[2]).tanh().matmul(params[3]).square().sum().backward()
        exchange.sum([])

    in_world(2, update)
    assert events == ["1024 values sent", "the last product begins", "6144 values sent", "0 values sent"]


def test_a_sum_is_sent_on_before_the_backward_pass_ends() -> None:
    """As soon as the next bucket is on its way, and in the same order in all processes."""
    events: dict[int, list[str]] = {0: [], 1: []}

    class Noted(World):
        def start_exchange(self, received: Tensor, sent: Tensor) -> Any:
            events[self.rank].append(f"{sent.numel()} bytes to add up")
            return super().start_exchange(received, sent)

        def start_gather(self, gathered: Tensor, part: Tensor) -> Any:
            events[self.rank].append(f"{part.numel()} bytes of a sum")
            return super().start_gather(gathered, part)

    def update(world: World) -> None:
        params = [torch.nn.Parameter(torch.ones(512)) for _ in range(3)]
        exchange = GradientSum(Noted(world.rank, world.size, group=world._group), params, "int8")
        exchange.pieces([0, 1], 4)
        inner = params[0] * 2
        inner.register_hook(lambda _: events[world.rank].append("the last gradient begins"))
        (inner * params[1] * params[2]).sum().backward()
        exchange.sum([])

    in_world(2, update)
    away, on = "520 bytes to add up", "260 bytes of a sum"
    assert events[0] == events[1] == [away, away, on, "the last gradient begins", away, on, on]


def test_a_process_that_vanishes_in_the_backward_pass_is_named() -> None:
    class Lost(World):
        def start_exchange(self, received: Tensor, sent: Tensor) -> Any:
            return self

        def wait(self) -> None:
            raise LostPeerError("lost beta")

    params = [torch.nn.Parameter(torch.ones(512)) for _ in range(2)]
    exchange = GradientSum(Lost(0, 2), params, "int8")
    exchange.pieces([0, 1], 4)
    with pytest.raises(LostPeerError, match="lost beta"):
        (params[0] * params[1]).sum().backward()


def test_owners_tensors_arrive_rounded_alike() -> None:
    found = {}

    def spread(world: World) -> None:
        tensors = [torch.full((3, 5), 10.0 * world.rank + n + 0.001) for n in range(3)]
        OwnedTensors(world, "bf16").start(tensors, [1, 0, 1]).wait()
        found[world.rank] = tensors

    in_world(2, spread)
    for tensors in found.values():
        assert [float(t[0, 0]) for t in tensors] == [10.0, 1.0, 12.0]
