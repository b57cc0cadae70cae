"""Machines that meet again: one joins later or returns, all find the new store, or an error says why."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ranks import free_port
from torch.distributed.elastic.rendezvous import RendezvousClosedError

from cpulm.distributed import launch
from cpulm.distributed.begun_run import LAUNCH
from cpulm.distributed.join import HOSTS_RENDEZVOUS, START
from cpulm.distributed.meeting_place import MeetingPlace
from cpulm.errors import SettingsError
from cpulm.exit_codes import LOST, SETTINGS
from cpulm.settings.distributed_settings import DistributedSettings

HERE = "127.0.0.1"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Makes a launcher that meets the others; the one that is made first has rank 0."""
    monkeypatch.setattr(launch, "LAST_CALL_SECONDS", 1)
    monkeypatch.setattr(launch, "ANSWER_SECONDS", 2)
    monkeypatch.setenv(START, "")
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


def test_a_machine_that_is_lost_while_they_meet_may_come_again(
    machine: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stays, returns = machine(), machine()
    with ThreadPoolExecutor() as pool:
        met = pool.submit(meet, stays)
        returns._rdzv_handler.next_rendezvous()  # and lost before it says how many processes it starts
        while "a machine was lost while the machines met" not in capsys.readouterr().out:
            assert not met.done()
            time.sleep(0.05)
        rank, size, store = meet(returns)
        assert (rank, size) == (1, 2)
        assert met.result() == (0, 2, store)


def test_a_launch_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_meeting(*_: object) -> None:
        assert {LAUNCH, HOSTS_RENDEZVOUS} <= set(os.environ)
        raise RendezvousClosedError

    monkeypatch.setattr(launch, "_rendezvous", no_meeting)
    before = dict(os.environ)
    with pytest.raises(SettingsError, match="did not meet"):
        launch.launch([], DistributedSettings(processes=2), print)
    assert dict(os.environ) == before


def test_machines_that_do_not_meet_say_why(machine: Callable[[], Any]) -> None:
    stays, ends = machine(), machine()
    place = MeetingPlace("alpha:29400", HERE, is_here=False)
    assert meet(stays)[:2] == (0, 1)
    ends._rdzv_handler.shutdown()
    with pytest.raises(RendezvousClosedError) as raised:
        meet(stays)
    first = launch._not_met(place, raised.value, has_met=False)
    again = launch._not_met(place, raised.value, has_met=stays.has_met)
    assert (first.exit_code, again.exit_code) == (SETTINGS, LOST)
    assert all("at alpha:29400: another machine has ended the run" in one.message for one in (first, again))
    assert "--resume" in again.hint
