"""Muon over several processes: what one does, the same bits in all, and each does its part of the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from worlds import in_world

from cpulm.distributed.gradients import OwnedTensors
from cpulm.distributed.world import World
from cpulm.model.transformer import Transformer
from cpulm.native.int8 import Int8Kernels
from cpulm.native.kernels import Kernels
from cpulm.native.library import load
from cpulm.optim.build_optimizers import build_optimizers
from cpulm.optim.divided_muon import PORTIONS, DividedMuon, in_portions, multiplications, owners_of
from cpulm.optim.muon import Muon, orthogonalise
from cpulm.settings.distributed_settings import Compression
from cpulm.settings.resolve_settings import resolve

Group = list[nn.Parameter]
SHAPES = [(128, 64), (64, 128), (192, 64), (192, 64), (128, 64)]
RATES = {"lr": 0.02, "weight_decay": 0.1}


@pytest.fixture(scope="module", params=["fp32", "int8"])
def kernels(kernels_library: Path, request: pytest.FixtureRequest) -> Int8Kernels | None:
    if request.param == "fp32":
        return None
    found = Kernels(kernels_library)
    return found.int8 or Int8Kernels(load(kernels_library), found.lanes)


def matrices() -> tuple[Group, Group]:
    """Two groups; the first is orthogonalised as a whole, the second in blocks of 64 rows."""
    generator = torch.Generator().manual_seed(1)
    drawn = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    return drawn[:2], drawn[2:]


def groups(whole: Group, in_blocks: Group) -> list[dict[str, object]]:
    return [{"params": whole, **RATES}, {"params": in_blocks, "block_rows": 64, **RATES}]


def give_gradients(whole: Group, in_blocks: Group, step: int) -> None:
    generator = torch.Generator().manual_seed(10 + step)
    for p in (*whole, *in_blocks):
        p.grad = torch.randn(p.shape, generator=generator) * 1e-3


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize(("sent_as", "off"), [("none", 1e-6), ("bf16", 1e-4), ("int8", 4e-4)])
def test_several_processes_do_what_one_does_and_have_the_same_bits(
    size: int, sent_as: Compression, off: float, kernels: Int8Kernels | None
) -> None:
    """``off`` is in weights, of which a step changes each by about 0.002; with 7 processes two have none."""
    alone = matrices()
    optimizer = Muon(groups(*alone), momentum=0.9, kernels=kernels)
    for step in range(3):
        give_gradients(*alone, step)
        optimizer.step()
    found: dict[int, list[torch.Tensor]] = {}

    def train(world: World) -> None:
        mine = matrices()
        divided = DividedMuon(groups(*mine), OwnedTensors(world, sent_as), momentum=0.9, kernels=kernels)
        for step in range(3):
            give_gradients(*mine, step)
            divided.step()
        params = [*mine[0], *mine[1]]
        found[world.rank] = [*(p.detach() for p in params), *(divided.state[p]["momentum"] for p in params)]

    in_world(size, train)
    for rank in range(1, size):
        assert all(torch.equal(one, other) for one, other in zip(found[0], found[rank], strict=True))
    expected = [p.detach() for p in (*alone[0], *alone[1])]
    for one, other in zip(found[0], expected, strict=False):
        torch.testing.assert_close(one, other, rtol=0, atol=off if kernels is None else max(off, 1e-4))
    averages = [optimizer.state[p]["momentum"] for p in (*alone[0], *alone[1])]
    torch.testing.assert_close(found[0][len(SHAPES) :], averages, rtol=1e-5, atol=1e-9)


def test_a_process_computes_its_own_matrices_alone() -> None:
    whole, in_blocks = matrices()
    give_gradients(whole, in_blocks, 0)

    class Kept:
        rank, size = 1, 3

        def __init__(self) -> None:
            self.owners: list[int] = []

        def start(self, tensors: Sequence[torch.Tensor], owners: Sequence[int]) -> Kept:
            self.owners += owners
            for tensor, owner in zip(tensors, owners, strict=True):
                if owner != self.rank:
                    tensor.zero_()
            return self

        def wait(self) -> None:
            pass

    kept = Kept()
    before = [p.detach().clone() for p in (*whole, *in_blocks)]
    DividedMuon([{"params": [*whole, *in_blocks], "lr": 1.0}], kept, momentum=0.9).step()
    changed = sum(
        not torch.equal(p.detach(), old) for p, old in zip((*whole, *in_blocks), before, strict=True)
    )
    assert changed == kept.owners.count(1) > 0


def test_portions_have_every_matrix_once_and_a_like_part_of_each_owner() -> None:
    owners = {torch.empty(8, 1 + n % 3): n % 2 for n in range(24)}
    portions = list(in_portions(owners, 3))
    assert sorted(id(p) for portion in portions for p in portion) == sorted(id(p) for p in owners)
    for owner in (0, 1):
        parts = [sum(p.numel() for p in portion if owners[p] == owner) for portion in portions]
        assert len(parts) == PORTIONS
        assert max(parts) - min(parts) <= 24, "the largest matrix"


def test_a_portion_is_sent_before_the_next_is_orthogonalised(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def noted(blocks: torch.Tensor) -> torch.Tensor:
        events.append("orthogonalised")
        return orthogonalise(blocks)

    class Noted:
        rank, size = 0, 1

        def start(self, tensors: Sequence[torch.Tensor], owners: Sequence[int]) -> Noted:
            events.append("sent")
            return self

        def wait(self) -> None:
            events.append("arrived")

    monkeypatch.setattr("cpulm.optim.divided_muon.orthogonalise", noted)
    same = [nn.Parameter(torch.ones(4, 4)) for _ in range(PORTIONS)]
    for p in same:
        p.grad = torch.ones(4, 4)
    DividedMuon([{"params": same, **RATES}], Noted(), momentum=0.9).step()
    assert events == ["orthogonalised", "sent"] * PORTIONS + ["arrived"] * PORTIONS


@pytest.mark.parametrize("preset", ["4x192", "6x256", "6x384", "nano"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_work_is_divided_equally(preset: str, size: int) -> None:
    """No process has over 15 % more than its part of the work, or over 40 % more of what is sent."""
    settings = resolve(preset=preset)
    muon = build_optimizers(Transformer(settings.model, 512), settings.train)[0]
    matrices = [(p, group["block_rows"]) for group in muon.param_groups for p in group["params"]]
    work = [multiplications(p, block_rows) for p, block_rows in matrices]
    owners = owners_of(work, size)
    for amounts, most in ((work, 1.15), ([p.numel() for p, _ in matrices], 1.4)):
        loads = [sum(a for a, o in zip(amounts, owners, strict=True) if o == rank) for rank in range(size)]
        assert max(loads) < most * sum(amounts) / size


def test_with_fewer_matrices_than_processes_some_have_none() -> None:
    assert owners_of([3, 9, 3], 5) == [1, 0, 2]
    assert owners_of([], 2) == []
