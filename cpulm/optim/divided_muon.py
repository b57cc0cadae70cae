"""Muon over the processes of a run: each orthogonalises a part of the matrices, and sends the result to all.

Every process keeps the moving averages of all matrices: they are one pass over memory, and a process that
is lost takes nothing with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from cpulm.native.int8 import Int8Kernels, MuonUpdate
from cpulm.optim.muon import (
    COEFFICIENTS,
    ITERATIONS,
    Muon,
    alike,
    at_once,
    decay_and_step_size,
    orthogonalise,
)

PORTIONS = 4
"""Parts of a process's matrices: one is sent while the next is orthogonalised."""


class Owners(Protocol):
    """The processes of a run, each of which owns some tensors.

    Attributes:
        rank: this process.
        size: how many there are.
    """

    rank: int
    size: int

    def start(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> Arriving:
        """Begin to replace each of ``tensors`` by that of its owner, the same bits in every process."""


class Arriving(Protocol):
    """Tensors that are on their way."""

    def wait(self) -> None:
        """Wait until all are those of their owners."""


class DividedMuon(Muon):
    """Muon, whose iteration each process computes for its own matrices. All have the same gradients.

    Torch computes the momentum also where kernels do the rest, because it needs the same bits everywhere.

    Args:
        params, momentum, kernels: as in :class:`Muon`.
        owners: the processes.
    """

    def __init__(
        self, params: Iterable[Any], owners: Owners, *, momentum: float, kernels: Int8Kernels | None = None
    ) -> None:
        super().__init__(params, momentum=momentum, kernels=kernels)
        self._owners = owners

    def _update_all(self) -> None:
        work: list[int] = []
        updates: dict[Tensor, Tensor] = {}
        for group, matrices in self._with_gradients():
            work += [multiplications(p, group["block_rows"]) for p in matrices]
            updates |= {p: torch.empty_like(p) for p in matrices}
            gradients = [p.grad for p in matrices if p.grad is not None]
            torch._foreach_lerp_([self._average(p) for p in matrices], gradients, 1.0 - group["momentum"])
        owners = dict(zip(updates, owners_of(work, self._owners.size), strict=True))
        portions = list(in_portions(owners, self._owners.size))
        on_their_way = []
        for portion in portions:
            for group, some in self._alike(p for p in portion if owners[p] == self._owners.rank):
                self._orthogonalise(some, updates, group)
            sent = [updates[p] for p in portion]
            on_their_way.append(self._owners.start(sent, [owners[p] for p in portion]))
        for portion, spreading in zip(portions, on_their_way, strict=True):
            spreading.wait()
            for group, some in self._alike(portion):
                decay, step_size = decay_and_step_size(group, some[0])
                torch._foreach_mul_(some, 1.0 - decay)
                torch._foreach_add_(some, [updates[p] for p in some], alpha=-step_size)

    def _alike(self, matrices: Iterable[Tensor]) -> Iterable[tuple[dict[str, Any], list[Tensor]]]:
        """``matrices`` of one group and one shape together."""
        wanted = set(matrices)
        for group in self.param_groups:
            for some in alike(p for p in group["params"] if p in wanted):
                yield group, some

    def _with_gradients(self) -> Iterable[tuple[dict[str, Any], list[Tensor]]]:
        return ((group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups)

    def _orthogonalise(
        self, matrices: list[Tensor], updates: Mapping[Tensor, Tensor], group: dict[str, Any]
    ) -> None:
        """Write the directions of ``matrices`` of one shape to their ``updates``."""
        block_rows = group["block_rows"] or matrices[0].size(0)
        for p in matrices:
            assert p.grad is not None
            torch.lerp(p.grad, self._average(p), group["momentum"], out=updates[p])
        fitting = [updates[p] for p in matrices if self._fits_int8(p, group)]
        if fitting:
            assert self._kernels is not None
            directions = [update.clone() for update in fitting]
            torch._foreach_zero_(fitting)
            # Without momentum the average becomes the gradient, which it already is here; without decay a
            # weight of zero becomes the direction.
            alone = MuonUpdate(block_rows, 0.0, 0.0, -1.0, ITERATIONS, COEFFICIENTS)
            self._kernels.muon(fitting, directions, directions, alone)
        for some in at_once([updates[p] for p in matrices if not self._fits_int8(p, group)]):
            blocks = torch.stack(some).view(-1, block_rows, some[0].size(1))
            torch._foreach_copy_(some, list(orthogonalise(blocks).reshape(len(some), *some[0].shape)))


def multiplications(matrix: Tensor, block_rows: int | None) -> int:
    """Return the multiplications of an iteration, without a factor that all matrices share.

    >>> multiplications(torch.empty(256, 64), None), multiplications(torch.empty(256, 64), 64)
    (2359296, 3145728)
    """
    rows, cols = block_rows or matrix.size(0), matrix.size(1)
    small, large = sorted((rows, cols))
    return matrix.size(0) // rows * small * small * (2 * large + small)


def in_portions(owners: Mapping[Tensor, int], size: int) -> Iterable[list[Tensor]]:
    """Divide matrices into up to :data:`PORTIONS`, each with about as many values of every owner."""
    totals, before = [0] * size, [0] * size
    for p, owner in owners.items():
        totals[owner] += p.numel()
    portions: list[list[Tensor]] = [[] for _ in range(PORTIONS)]
    for p, owner in owners.items():
        portions[before[owner] * PORTIONS // totals[owner]].append(p)
        before[owner] += p.numel()
    return (portion for portion in portions if portion)


def owners_of(work: Sequence[int], size: int) -> list[int]:
    """Return an owner for each piece of ``work``: the largest first, each to the one with the least so far.

    >>> owners_of([5, 1, 5, 3, 3, 1], 2), owners_of([4], 3)
    ([0, 0, 1, 0, 1, 1], [0])
    """
    loads, owners = [0] * size, [0] * len(work)
    for number in sorted(range(len(work)), key=lambda number: -work[number]):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += work[number]
    return owners
