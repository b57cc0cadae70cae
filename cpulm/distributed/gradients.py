"""The gradients of an update, summed over the processes of a run.

An update has ``train.grad_accum_steps`` micro-batches of ``train.micro_batch_size`` rows. Each process takes
an equal, contiguous part of all these rows. The gradient of a part of a micro-batch is weighted by its share
of the tokens that count, so that the sum is the gradient that one process would have computed.

Gradients are sent in buckets, each as soon as the last backward pass has completed it: the network works
while the processor does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cpulm.data.batch_pieces import BatchPiece, pieces_of
from cpulm.distributed.compression import BLOCK, Quantize, block_views, compress, restore, whole_blocks
from cpulm.distributed.world import Pending, World
from cpulm.settings.distributed_settings import Compression

BUCKET_BYTES = 2 << 20
"""Gradients that are sent together: what is sent last, and so in vain, is small, and stays in the cache."""


class GradientSum:
    """Sums the gradients of a model over the processes of ``world``.

    Args:
        parameters: all that are trained, in the order of the forward pass.
        compression: how gradients are sent: ``none``, ``bf16`` or ``int8``. With the latter two, each process
            receives its part of all gradients, adds it up in float32, and sends the sum to the others: a
            gradient is rounded twice, whatever the number of processes.
        quantize: as in :func:`cpulm.distributed.compression.compress`.
    """

    def __init__(
        self,
        world: World,
        parameters: Iterable[Tensor],
        compression: Compression = "none",
        quantize: Quantize | None = None,
    ) -> None:
        self._world = world
        self._buckets = [
            _Bucket(some, world, compression, quantize) for some in _in_buckets(list(parameters))
        ]
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
            self._start_next()

    def _start_next(self) -> None:
        """Start a bucket. The one before has had the time of its gradients to arrive, and is added up."""
        self._buckets[self._started].start()
        if self._started:
            self._buckets[self._started - 1].add_up()
        self._started += 1

    @torch.no_grad()
    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum the gradients, and ``values``, over all processes.

        Raises:
            CpulmError: what another process ended with; LostPeerError if one has vanished.
        """
        while self._started < len(self._buckets):  # stopped, or what got no gradient in some piece
            self._start_next()
        totals = torch.tensor(values, dtype=torch.float64)
        pending = self._world.start_sum(totals)
        for bucket in self._buckets[:-2]:
            bucket.take()
        for bucket in self._buckets[-1:]:
            bucket.add_up()
        for bucket in self._buckets[-2:]:
            bucket.take()
        pending.wait()
        return list(totals.tolist())


class OwnedTensors:
    """Tensors of which each process computes some for all: what a part of an update led to.

    Args:
        compression, quantize: how they are sent, as in :class:`GradientSum`; the owner takes the rounded ones
            too.
    """

    def __init__(
        self, world: World, compression: Compression = "none", quantize: Quantize | None = None
    ) -> None:
        self.rank, self.size = world.rank, world.size
        self._world, self._compression, self._quantize = world, compression, quantize

    @torch.no_grad()
    def start(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> Spreading:
        """Begin to replace each of ``tensors`` by that of its owner, the same bits in every process.

        Args:
            tensors: float32, of the same shapes in all processes.
            owners: the rank of each one's owner.
        """
        by_rank = [
            [t for t, owner in zip(tensors, owners, strict=True) if owner == n] for n in range(self.size)
        ]
        count = max(sum(map(whole_blocks, some)) for some in by_rank)
        part = torch.zeros(count)
        for view, tensor in zip(block_views(part, by_rank[self.rank]), by_rank[self.rank], strict=True):
            view.copy_(tensor)
        content = compress(part, self._compression, self._quantize)
        received = torch.empty(self.size, content.numel(), dtype=torch.uint8)
        pending = self._world.start_gather(received.view(-1), content)
        return Spreading(by_rank, count, self._compression, received, pending)


@dataclass(frozen=True)
class Spreading:
    """Tensors that are on their way; ``received`` has a row of ``count`` values for each process."""

    by_rank: list[list[Tensor]]
    count: int
    compression: Compression
    received: Tensor
    pending: Pending

    @torch.no_grad()
    def wait(self) -> None:
        """Wait until all tensors are those of their owners.

        Raises:
            CpulmError, LostPeerError: as in :meth:`GradientSum.sum`.
        """
        self.pending.wait()
        for some, row in zip(self.by_rank, restore(self.received, self.count, self.compression), strict=True):
            for tensor, view in zip(some, block_views(row, some), strict=True):
                tensor.copy_(view)


class _Bucket:
    """The gradients of some parameters, one after the other in one tensor.

    Attributes:
        missing: how many gradients of this process's pieces are still to come.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        world: World,
        compression: Compression,
        quantize: Quantize | None,
    ) -> None:
        self.parameters, self._world = list(parameters), world
        self._compression, self._quantize = compression, quantize
        self.missing = 0
        unit = 1 if compression == "none" else world.size * BLOCK
        self._flat = torch.zeros(-(-sum(map(whole_blocks, parameters)) // unit) * unit)
        self._views = block_views(self._flat, self.parameters)
        self._received = self._sent = torch.zeros(0, dtype=torch.uint8)
        self._pending: Pending | None = None

    def start(self) -> None:
        """Copy the gradients together, and begin to send them."""
        for view, parameter in zip(self._views, self.parameters, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad)
        if self._compression == "none":
            self._pending = self._world.start_sum(self._flat)
            return
        parts = self._flat.view(self._world.size, -1)
        self._sent = compress(parts, self._compression, self._quantize).view(-1)
        self._received = torch.empty_like(self._sent)
        self._pending = self._world.start_exchange(self._received, self._sent)

    def add_up(self) -> None:
        """With compression: add up this process's part, and begin to send it to the others."""
        if self._compression != "none":
            self._sent = compress(self._parts().sum(0), self._compression, self._quantize)
            self._pending = self._world.start_gather(self._received, self._sent)

    def take(self) -> None:
        """Make the sums the gradients."""
        if self._compression == "none":
            self._wait()
        else:
            self._flat.copy_(self._parts().view(-1))
        for view, parameter in zip(self._views, self.parameters, strict=True):
            parameter.grad = view

    def _parts(self) -> Tensor:
        """What was received from each process, float32 [size, values]."""
        self._wait()
        size = self._world.size
        return restore(self._received.view(size, -1), self._flat.numel() // size, self._compression)

    def _wait(self) -> None:
        assert self._pending is not None
        self._pending.wait()


def _in_buckets(parameters: list[Tensor]) -> Iterable[list[Tensor]]:
    """Buckets in the order in which a backward pass completes them: the last parameters first."""
    waiting: list[Tensor] = []
    for parameter in reversed(parameters):
        waiting.append(parameter)
        if sum(p.numel() * 4 for p in waiting) >= BUCKET_BYTES:
            yield waiting
            waiting = []
    if waiting:
        yield waiting
