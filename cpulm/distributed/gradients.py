"""The gradients of an update, summed over the processes of a run.

An update has ``train.grad_accum_steps`` micro-batches of ``train.micro_batch_size`` rows. Each process takes
an equal, contiguous part of all these rows. The gradient of a part of a micro-batch is weighted by its share
of the tokens that count, so that the sum is the gradient that one process would have computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cpulm.data.share import BatchPiece, pieces_of
from cpulm.distributed.world import Pending, World

BUCKET_BYTES = 8 << 20
"""Gradients that are sent together."""
_ALIGNED = 16
"""Each gradient begins at a multiple of this many values: 64 bytes, as torch allocates."""


class GradientSum:
    """Sums the gradients of a model over the processes of ``world``.

    Args:
        parameters: all that are trained, in the order of the forward pass.
    """

    def __init__(self, world: World, parameters: Iterable[Tensor]) -> None:
        self._world = world
        self._buckets = list(_buckets(list(parameters)))

    def pieces(self, batches: Sequence[int], batch_size: int) -> list[BatchPiece]:
        """Return what this process computes of an update's micro-batches."""
        return pieces_of(batches, batch_size, self._world.rank, self._world.size)

    @torch.no_grad()
    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum the gradients, and ``values``, over all processes.

        Raises:
            CpulmError: what another process ended with; LostPeerError if one has vanished.
        """
        pending = [bucket.start(self._world) for bucket in self._buckets]
        totals = torch.tensor(values, dtype=torch.float64)
        self._world.sum(totals)
        for bucket, one in zip(self._buckets, pending, strict=True):
            one.wait()
            bucket.take()
        return list(totals.tolist())


class _Bucket:
    """The gradients of some parameters, one after the other in one tensor."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        sizes = [-(-p.numel() // _ALIGNED) * _ALIGNED for p in parameters]
        self._flat = torch.zeros(sum(sizes))
        parts = self._flat.split(sizes)
        self._views = [part[: p.numel()].view(p.shape) for part, p in zip(parts, parameters, strict=True)]

    def start(self, world: World) -> Pending:
        """Copy the gradients together, and begin to sum them."""
        for view, parameter in zip(self._views, self._parameters, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad)
        return world.start_sum(self._flat)

    def take(self) -> None:
        """Make the sums the gradients."""
        for view, parameter in zip(self._views, self._parameters, strict=True):
            parameter.grad = view


def _buckets(parameters: list[Tensor]) -> Iterable[_Bucket]:
    """Buckets in the order in which a backward pass completes them: the last parameters first."""
    waiting: list[Tensor] = []
    for parameter in reversed(parameters):
        waiting.append(parameter)
        if sum(p.numel() * 4 for p in waiting) >= BUCKET_BYTES:
            yield _Bucket(waiting)
            waiting = []
    if waiting:
        yield _Bucket(waiting)
