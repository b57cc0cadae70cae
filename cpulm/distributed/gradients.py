"""The gradients of an update, summed over the processes of a run.

An update has ``train.grad_accum_steps`` micro-batches of ``train.micro_batch_size`` rows. Each process takes
an equal, contiguous part of all these rows. The gradient of a part of a micro-batch is weighted by its share
of the tokens that count, so that the sum is the gradient that one process would have computed.

Gradients are sent in buckets, each as soon as the last backward pass has completed it: the network works
while the processor does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from cpulm.data.batch_pieces import BatchPiece, pieces_of
from cpulm.distributed.compression import BLOCK, Compression, compress, restore
from cpulm.distributed.world import Pending, World

BUCKET_BYTES = 8 << 20
"""Gradients that are sent together."""


class GradientSum:
    """Sums the gradients of a model over the processes of ``world``.

    Args:
        parameters: all that are trained, in the order of the forward pass.
        compression: how gradients are sent: ``none``, ``bf16`` or ``int8``. With the latter two, each process
            receives its part of all gradients, adds it up in float32, and sends the sum to the others: a
            gradient is rounded twice, whatever the number of processes.
    """

    def __init__(self, world: World, parameters: Iterable[Tensor], compression: Compression = "none") -> None:
        self._world = world
        self._buckets = list(_buckets(list(parameters), world.size, compression))
        self._started = len(self._buckets)
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._note_gradient, bucket))

    def pieces(self, batches: Sequence[int], batch_size: int) -> list[BatchPiece]:
        """Begin an update: return what this process computes of its micro-batches."""
        pieces = pieces_of(batches, batch_size, self._world.rank, self._world.size)
        for bucket in self._buckets:
            bucket.missing = len(pieces) * len(bucket.parameters)
        self._started = 0
        return pieces

    @torch.no_grad()
    def _note_gradient(self, bucket: _Bucket, _: Tensor) -> None:
        """Count a gradient; start all buckets that are complete. All processes start them in one order."""
        bucket.missing -= 1
        while self._started < len(self._buckets) and self._buckets[self._started].missing == 0:
            self._buckets[self._started].start(self._world)
            self._started += 1

    @torch.no_grad()
    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum the gradients, and ``values``, over all processes.

        Raises:
            CpulmError: what another process ended with; LostPeerError if one has vanished.
        """
        for bucket in self._buckets[self._started :]:  # stopped, or what got no gradient in some piece
            bucket.start(self._world)
        self._started = len(self._buckets)
        totals = torch.tensor(values, dtype=torch.float64)
        self._world.sum(totals)
        for bucket in self._buckets:
            bucket.add_up(self._world)
        for bucket in self._buckets:
            bucket.take(self._world)
        return list(totals.tolist())


class OwnedTensors:
    """Tensors of which each process computes some for all: what a part of an update led to.

    Args:
        compression: how they are sent, as in :class:`GradientSum`; the owner takes the rounded ones too.
    """

    def __init__(self, world: World, compression: Compression = "none") -> None:
        self.rank, self.size = world.rank, world.size
        self._world, self._compression = world, compression

    @torch.no_grad()
    def spread(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """Replace each of ``tensors`` by that of its owner, the same bits in every process.

        Args:
            tensors: float32, of the same shapes in all processes.
            owners: the rank of each one's owner.

        Raises:
            CpulmError, LostPeerError: as in :meth:`GradientSum.sum`.
        """
        by_rank = [
            [t for t, owner in zip(tensors, owners, strict=True) if owner == n] for n in range(self.size)
        ]
        count = max(sum(map(_whole_blocks, some)) for some in by_rank)
        part = torch.zeros(count)
        for view, tensor in zip(_views(part, by_rank[self.rank]), by_rank[self.rank], strict=True):
            view.copy_(tensor)
        content = compress(part, self._compression)
        received = torch.empty(self.size * content.numel(), dtype=torch.uint8)
        self._world.start_gather(received, content).wait()
        for some, row in zip(by_rank, received.view(self.size, -1), strict=True):
            for tensor, view in zip(some, _views(restore(row, count, self._compression), some), strict=True):
                tensor.copy_(view)


class _Bucket:
    """The gradients of some parameters, one after the other in one tensor.

    Attributes:
        missing: how many gradients of this process's pieces are still to come.
    """

    def __init__(self, parameters: Sequence[Tensor], size: int, compression: Compression) -> None:
        self.parameters, self._compression = list(parameters), compression
        self.missing = 0
        unit = 1 if compression == "none" else size * BLOCK
        self._flat = torch.zeros(-(-sum(map(_whole_blocks, parameters)) // unit) * unit)
        self._views = _views(self._flat, self.parameters)
        self._received = self._sent = torch.zeros(0, dtype=torch.uint8)
        self._pending: Pending | None = None

    def start(self, world: World) -> None:
        """Copy the gradients together, and begin to send them."""
        for view, parameter in zip(self._views, self.parameters, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad)
        if self._compression == "none":
            self._pending = world.start_sum(self._flat)
            return
        parts = self._flat.view(world.size, -1)
        self._sent = torch.cat([compress(part, self._compression) for part in parts])
        self._received = torch.empty_like(self._sent)
        self._pending = world.start_exchange(self._received, self._sent)

    def add_up(self, world: World) -> None:
        """With compression: add up this process's part, and begin to send it to the others."""
        self._wait()
        if self._compression != "none":
            self._sent = compress(self._parts(world.size).sum(0), self._compression)
            self._pending = world.start_gather(self._received, self._sent)

    def take(self, world: World) -> None:
        """Make the sums the gradients."""
        if self._compression != "none":
            self._wait()
            self._flat.copy_(self._parts(world.size).view(-1))
        for view, parameter in zip(self._views, self.parameters, strict=True):
            parameter.grad = view

    def _parts(self, size: int) -> Tensor:
        """What was received from each process, float32 [size, values]."""
        count, rows = self._flat.numel() // size, self._received.view(size, -1)
        return torch.stack([restore(row, count, self._compression) for row in rows])

    def _wait(self) -> None:
        assert self._pending is not None
        self._pending.wait()


def _buckets(parameters: list[Tensor], size: int, compression: Compression) -> Iterable[_Bucket]:
    """Buckets in the order in which a backward pass completes them: the last parameters first."""
    waiting: list[Tensor] = []
    for parameter in reversed(parameters):
        waiting.append(parameter)
        if sum(p.numel() * 4 for p in waiting) >= BUCKET_BYTES:
            yield _Bucket(waiting, size, compression)
            waiting = []
    if waiting:
        yield _Bucket(waiting, size, compression)


def _views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``flat`` with the shapes of ``tensors``, one after the other.

    Each begins a block, so that small numbers are not rounded by the scale of another tensor's.
    """
    parts = flat[: sum(map(_whole_blocks, tensors))].split([_whole_blocks(t) for t in tensors])
    return [part[: t.numel()].view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def _whole_blocks(tensor: Tensor) -> int:
    return -(-tensor.numel() // BLOCK) * BLOCK
