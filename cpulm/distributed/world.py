"""The processes of a run: who this one is, and what they tell each other.

One of them is the *main* process, rank 0: it writes the run's folder and shows the run. A run of one process
is a world of size 1, which exchanges nothing and loads no library.

What arrives from another process is JSON or numbers, never pickled objects.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cpulm.distributed.pulse import Pulse

if TYPE_CHECKING:
    import torch.distributed as dist

_LOOK_SECONDS = 1.0
"""How often a process that waits for the others checks whether they are alive."""
_FILE_CHUNK_BYTES = 1 << 24


class World:
    """The processes of a run.

    Attributes:
        rank: this process, from 0.
        size: how many there are.
        local_rank: this process among those on this machine.
        local_size: how many are on this machine.
        hosts: the machine of each rank, as it is called.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        local_size: int = 1,
        hosts: Sequence[str] = ("",),
        group: dist.ProcessGroup | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.hosts = tuple(hosts)
        self._group, self._pulse = group, pulse

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's folder and shows the run."""
        return self.rank == 0

    def named(self, rank: int) -> str:
        """``alpha, process 1 of 2``: a process in messages."""
        return f"{self.hosts[rank]}, process {rank + 1} of {self.size}"

    def start_sum(self, tensor: Tensor) -> Pending:
        """Begin to replace ``tensor``, contiguous on the CPU, by its sum over all processes.

        The result has the same bits everywhere.
        """
        assert self._group is not None
        return Pending(self._group.allreduce([tensor]), self)

    def sum(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all processes, the same bits everywhere."""
        if self.size > 1:
            self.start_sum(tensor).wait()

    def start_exchange(self, received: Tensor, sent: Tensor) -> Pending:
        """Begin to send the n-th equal part of ``sent`` to rank n, and to receive one of each."""
        assert self._group is not None
        return Pending(self._group.alltoall_base(received, sent, [], []), self)

    def start_gather(self, gathered: Tensor, part: Tensor) -> Pending:
        """Begin to collect the ``part`` of every rank, in order, into ``gathered``."""
        assert self._group is not None
        return Pending(self._group._allgather_base(gathered, part), self)

    def broadcast(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by that of the main process."""
        if self._group is not None:
            Pending(self._group.broadcast(tensor, 0), self).wait()

    def start_agree(self, flag: bool, *values: float) -> Agreement:
        """Begin to find out whether ``flag`` is true in any process, and the ``values`` of the main one."""
        told = torch.tensor([flag, *(values if self.is_main else [0.0] * len(values))], dtype=torch.float64)
        return Agreement(told, self.start_sum(told) if self.size > 1 else None)

    def agree(self, flag: bool, *values: float) -> tuple[bool, tuple[float, ...]]:
        """Return whether ``flag`` is true in any process, and the ``values`` of the main process."""
        return self.start_agree(flag, *values).wait()

    def gather(self, value: Any) -> list[Any]:
        """Return the ``value`` of every rank, which JSON must be able to hold."""
        if self.size == 1:
            return [value]
        content = json.dumps(value).encode()
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(content)
        self.sum(lengths)
        longest = int(lengths.max())
        part = torch.zeros(longest, dtype=torch.uint8)
        part[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        gathered = torch.zeros(self.size * longest, dtype=torch.uint8)
        self.start_gather(gathered, part).wait()
        rows = gathered.view(self.size, longest)
        return [json.loads(bytes(row[:n].numpy())) for row, n in zip(rows, lengths.tolist(), strict=True)]

    def share(self, value: Any) -> Any:
        """Return the ``value`` of the main process, which JSON must be able to hold."""
        if self.size == 1:
            return value
        content = json.dumps(value).encode() if self.is_main else b""
        length = torch.tensor([len(content)])
        self.broadcast(length)
        told = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_main:
            told.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.broadcast(told)
        return json.loads(bytes(told.numpy()))

    def share_file(self, source: Path | None, copy: Path) -> None:
        """Write the main process's file ``source`` to ``copy`` in every other process."""
        if self.size == 1:
            return
        length = self.share(source.stat().st_size if source is not None and self.is_main else 0)
        reading = source.open("rb") if self.is_main and source is not None else None
        writing = None if self.is_main else copy.open("wb")
        try:
            for start in range(0, length, _FILE_CHUNK_BYTES):
                chunk = torch.zeros(min(_FILE_CHUNK_BYTES, length - start), dtype=torch.uint8)
                if reading is not None:
                    reading.readinto(chunk.numpy().data)
                self.broadcast(chunk)
                if writing is not None:
                    writing.write(chunk.numpy().data)
        finally:
            for file in (reading, writing):
                if file is not None:
                    file.close()

    def others_here(self) -> tuple[int, ...]:
        """Process ids of the run's other processes on this machine."""
        return () if self._pulse is None else self._pulse.pids_here

    def check(self, error: Exception | None = None) -> None:
        """Raise the error of a process that has ended, LostPeerError if one has vanished; else return.

        Args:
            error: what an exchange with the others failed with: then one of them has ended.
        """
        if self._pulse is not None:
            self._pulse.check(error)


class Pending:
    """An exchange that has begun."""

    def __init__(self, work: Any, world: World) -> None:
        self._work, self._world = work, world

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            CpulmError: what another process ended with.
            LostPeerError: if another process has vanished.
        """
        while True:
            try:
                self._work.wait(timedelta(seconds=_LOOK_SECONDS))
                return
            except RuntimeError as error:
                still = "timed out" in str(error).lower() and not self._work.is_completed()
                self._world.check(None if still else error)


class Agreement:
    """An answer that the processes are about to agree on."""

    def __init__(self, told: Tensor, pending: Pending | None) -> None:
        self._told, self._pending = told, pending

    def wait(self) -> tuple[bool, tuple[float, ...]]:
        """Return it; raises as :meth:`Pending.wait`."""
        if self._pending is not None:
            self._pending.wait()
        first, *others = self._told.tolist()
        return first > 0, tuple(others)


SOLO = World()
"""The world of a run in one process."""
