"""Machines that join a run later: all of them find the store of the new start, whoever keeps it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ranks import free_port

from cpulm.distributed import launch
from cpulm.distributed.meeting_place import MeetingPlace
from cpulm.distributed_settings import DistributedSettings

HERE = "127.0.0.1"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Makes a launcher that meets the others; the one that is made first has rank 0."""
    monkeypatch.setattr(launch, "LAST_CALL_SECONDS", 1)
    monkeypatch.setenv(launch.START, "")
    settings = DistributedSettings(nodes="1:2", rendezvous=f"{HERE}:{free_port()}")
    place = MeetingPlace(settings.rendezvous, HERE, is_here=True)
    made = []

    def make() -> Any:
        agent = launch._Agent([], settings, place, launch._rendezvous(settings, place), print)
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent._rdzv_handler.shutdown()


def meet(machine: Any) -> tuple[int, int, tuple[str, int]]:
    """Meet the others; return the rank, the number of machines, and where their processes would connect."""
    group = machine._worker_group
    machine._rendezvous(group)
    return group.group_rank, group.group_world_size, (group.master_addr, group.master_port)


@pytest.mark.parametrize("newcomer", [0, 1])
def test_a_machine_that_joins_later_finds_the_store(machine: Callable[[], Any], newcomer: int) -> None:
    both = [machine(), machine()]
    joins, stays = both[newcomer], both[1 - newcomer]
    assert meet(stays)[:2] == (0, 1)
    with ThreadPoolExecutor() as pool:
        joined = pool.submit(meet, joins)
        while stays._rdzv_handler.num_nodes_waiting() == 0:
            assert not joined.done()
            time.sleep(0.05)
        rank, size, store = meet(stays)
        assert joined.result() == (newcomer, 2, store)
    assert (rank, size) == (1 - newcomer, 2)
    assert both[0]._rdzv_handler._shared_tcp_store_server.port == store[1]
    socket.create_connection(store, timeout=5).close()
