"""Rounds of updates without any exchange, after which the processes' changes of the weights are averaged.

DiLoCo (Douillard and others, 2023, https://arxiv.org/abs/2311.08105), with compressed changes and error
feedback as in MuLoCo (Thérien and others, 2025, https://arxiv.org/abs/2505.23725).

All processes take the same number of updates in a round, each on a part of the rows of every update. A fast
process gets more rows, not more updates: an average over different numbers of updates has another optimum
(Wang and others, "Tackling the Objective Inconsistency Problem", 2020, https://arxiv.org/abs/2007.07481).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cpulm.data.batch_pieces import BatchPiece, rows_between
from cpulm.distributed.compression import BLOCK, Quantize, block_views, compress, restore, whole_blocks
from cpulm.distributed.world import World
from cpulm.settings.distributed_settings import Compression


class OwnRows:
    """This process's part of the rows of every update; its gradients stay here.

    Args:
        parameters: all that are trained.
        rows: in an update, of all processes together; at least one for each.
        by_speed: divide the rows of the next round by the speeds of the last one; else equally.
    """

    def __init__(self, world: World, parameters: Iterable[Tensor], rows: int, *, by_speed: bool) -> None:
        self._world, self._parameters = world, list(parameters)
        self._rows, self._by_speed = rows, by_speed
        self.shares = divided(rows, [1.0] * world.size)
        self._seconds, self._trained = 0.0, 0

    @property
    def part(self) -> float:
        """This process's part of all rows: its weight in the average."""
        return self.shares[self._world.rank] / self._rows

    def pieces(self, batches: Sequence[int], batch_size: int) -> list[BatchPiece]:
        """Return what this process computes of an update's micro-batches."""
        begin = sum(self.shares[: self._world.rank])
        return rows_between(batches, batch_size, begin, begin + self.shares[self._world.rank])

    @torch.no_grad()
    def sum(self, values: Sequence[float]) -> list[float]:
        """Scale the gradients, and all ``values``, from a part of the update to a mean over this part."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self.part < 1.0:
            torch._foreach_mul_(gradients, 1.0 / self.part)
        return [value / self.part for value in values]

    def note(self, seconds: float) -> None:
        """Count the time of an update."""
        self._seconds += seconds
        self._trained += self.shares[self._world.rank]

    def divide(self) -> None:
        """Divide the rows of the next round; all processes at once."""
        if not self._by_speed or self._world.size == 1:
            return
        speeds = torch.zeros(self._world.size, dtype=torch.float64)
        speeds[self._world.rank] = self._trained / max(self._seconds, 1e-9)
        self._world.sum(speeds)
        if speeds.min() > 0:
            self.shares = divided(self._rows, speeds.tolist())
        self._seconds, self._trained = 0.0, 0


def divided(rows: int, speeds: Sequence[float]) -> list[int]:
    """Divide ``rows`` in proportion to ``speeds``, at least one for each; the largest remainders round up.

    >>> divided(16, [1.0, 1.0]), divided(16, [3.0, 1.0]), divided(5, [1.0, 1.0]), divided(4, [99.0, 1.0])
    ([8, 8], [12, 4], [3, 2], [3, 1])
    """
    total, spare = sum(speeds), rows - len(speeds)
    wanted = [max(0.0, rows * speed / total - 1.0) for speed in speeds]
    scale = spare / sum(wanted) if sum(wanted) else 0.0
    exact = [want * scale for want in wanted]
    shares = [1 + int(each) for each in exact]
    by_remainder = sorted(range(len(speeds)), key=lambda n: int(exact[n]) - exact[n])
    for number in by_remainder[: rows - sum(shares)]:
        shares[number] += 1
    return shares


class WeightedAverage:
    """Averages float32 numbers over the processes, in few bytes.

    Each process collects one part of the numbers from all others, and sends their sum to all. Of two, each
    sends all of its numbers to the other: that is as many bytes, and one rounding less.

    Args:
        kind, quantize: how numbers are sent, as in :func:`cpulm.distributed.compression.compress`.
    """

    def __init__(self, world: World, kind: Compression, quantize: Quantize | None = None) -> None:
        self._world, self._kind, self._quantize = world, kind, quantize

    def __call__(self, tensors: Sequence[Tensor], weight: float, lost: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums over all processes of ``weight`` times each tensor, the same bits everywhere.

        Args:
            tensors: float32.
            weight: of this process; those of all sum to 1.
            lost: float32 of the same shapes, what this process has still to send from earlier calls; they are
                updated with what rounding lost now.
        """
        size = self._world.size
        if size == 1:
            return list(tensors)
        blocks = sum(map(whole_blocks, tensors)) // BLOCK
        wanted = torch.zeros(size, -(-blocks // size) * BLOCK)
        unsent = block_views(wanted.view(-1), tensors)
        for view, tensor, left in zip(unsent, tensors, lost, strict=True):
            torch.add(left, tensor, alpha=weight, out=view)
        sums = self._of_two(wanted) if size == 2 else self._by_parts(wanted)
        for view, left in zip(unsent, lost, strict=True):
            left.copy_(view)
        return block_views(sums.view(-1), tensors)

    def _of_two(self, wanted: Tensor) -> Tensor:
        """Return the sum of ``wanted`` [2, N] over two processes; subtract from it what was sent."""
        sent = compress(wanted, self._kind, self._quantize)
        received = torch.empty(2, *sent.shape, dtype=torch.uint8)
        pending = self._world.start_gather(received.view(-1), sent.view(-1))
        wanted -= restore(sent, wanted.size(1), self._kind)
        pending.wait()
        return restore(received, wanted.size(1), self._kind).sum(0)

    def _by_parts(self, wanted: Tensor) -> Tensor:
        """The same for ``wanted`` [processes, N]; sums are rounded again where they are sent to all."""
        world, kind, part = self._world, self._kind, wanted.size(1)
        sent = compress(wanted, kind, self._quantize)
        received = torch.empty_like(sent)
        pending = world.start_exchange(received.view(-1), sent.view(-1))
        wanted -= restore(sent, part, kind)
        pending.wait()
        total = restore(received, part, kind).sum(0)
        own = compress(total, kind, self._quantize)
        pending = world.start_gather(sent.view(-1), own)
        wanted[world.rank] += total - restore(own, part, kind)
        pending.wait()
        return restore(sent, part, kind)
