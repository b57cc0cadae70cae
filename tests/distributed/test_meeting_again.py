"""Machines that meet again: one joins later or returns, all find the new store, or an error says why."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from ranks import free_port
from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousTimeoutError,
)

from cpulm.distributed import launch, meeting, meeting_place
from cpulm.distributed.begun_run import LAUNCH
from cpulm.distributed.join import AGAIN, HOSTS_RENDEZVOUS, START
from cpulm.distributed.meeting import Meeting, StateHolder
from cpulm.distributed.meeting_place import MeetingPlace, wait_for
from cpulm.errors import LostPeerError, SettingsError
from cpulm.exit_codes import LOST, SETTINGS, STOPPED
from cpulm.settings.distributed_settings import DistributedSettings

HERE = "127.0.0.1"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes a launcher that meets the others; the one that is made first has rank 0."""
    monkeypatch.setattr(meeting, "LAST_CALL_SECONDS", 3)
    monkeypatch.setattr(meeting, "ANSWER_SECONDS", 2)
    monkeypatch.setenv(START, "")
    monkeypatch.setenv(AGAIN, "")
    host, made = f"{HERE}:{free_port()}", []

    def make(elsewhere: str = "", nodes: str = "1:2") -> Any:
        settings = DistributedSettings(nodes=nodes)
        place = MeetingPlace(elsewhere or host, HERE, is_here=not elsewhere)
        agent = launch._Agent([], settings, place, Meeting(settings, place, print), print)
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent._meeting.shutdown()


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
        while stays._meeting.num_nodes_waiting() == 0:
            assert not joined.done()
            time.sleep(0.05)
        rank, size, store = meet(stays)
        assert joined.result() == (newcomer, 2, store)
    assert (rank, size) == (1 - newcomer, 2)
    assert both[0]._meeting._handler._shared_tcp_store_server.port == store[1]
    socket.create_connection(store, timeout=5).close()


def test_a_machine_that_is_lost_while_they_meet_may_come_again(
    machine: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stays, returns = machine(nodes="2"), machine(nodes="2")
    with ThreadPoolExecutor() as pool:
        met = pool.submit(meet, stays)
        returns._meeting.next_rendezvous()  # and lost before it says how many processes it starts
        while "a machine was lost while the machines met" not in capsys.readouterr().out:
            assert not met.done()
            time.sleep(0.05)
        rank, size, store = meet(returns)
        assert (rank, size) == (1, 2)
        assert met.result() == (0, 2, store)


class Cable:
    """Leads from a port of its own to another one of this machine, in a ``with`` block."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._ends: list[socket.socket] = []
        self._entry = socket.create_server((HERE, 0))
        self.place = f"{HERE}:{self._entry.getsockname()[1]}"

    def __enter__(self) -> Cable:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        with suppress(OSError):
            self._entry.shutdown(socket.SHUT_RDWR)
        self._entry.close()

    def cut(self) -> None:
        """End all connections; new ones are carried."""
        ends, self._ends = self._ends, []
        for end in ends:
            with suppress(OSError):  # it has ended
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the block has ended
            while True:
                near, far = self._entry.accept()[0], socket.create_connection((HERE, self._to))
                self._ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                to.sendall(content)
            to.shutdown(socket.SHUT_RDWR)


def test_a_machine_that_was_cut_off_meets_the_others_again(
    machine: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stays = machine()
    port = int(stays._meeting._place.endpoint.rpartition(":")[2])
    with Cable(port) as cable, ThreadPoolExecutor() as pool:
        returns = machine(cable.place)
        for _ in range(2):
            first = pool.submit(meet, stays)
            assert meet(returns)[:2] == (1, 2)
            assert first.result()[:2] == (0, 2)
            cable.cut()
            assert returns._meeting.num_nodes_waiting() == 0
    assert f"lost the connection to {cable.place}" in capsys.readouterr().out


def test_clocks_of_machines_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = SimpleNamespace(
        keep_alive_interval=timedelta(seconds=5), keep_alive_max_attempt=3, min_nodes=1
    )
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(meeting, "time", SimpleNamespace(monotonic=lambda: clock.now))
    holder = StateHolder(None, settings, print)  # type: ignore[arg-type]
    far = datetime.now(timezone.utc)
    words: dict[Any, datetime] = {"behind": far - timedelta(hours=1), "ahead": far + timedelta(hours=1)}
    holder.state.last_heartbeats = words

    def after(seconds: float, **says: timedelta) -> dict[Any, datetime]:
        clock.now += seconds
        for name, more in says.items():
            words[name] += more
        holder.state.last_heartbeats = dict(words)
        holder._sanitize()
        return holder.state.last_heartbeats

    assert after(0.0) == words
    assert after(100.0) == words  # this machine was suspended
    said = timedelta(seconds=5)
    for _ in range(2):
        assert after(5.0, behind=said) == words
    assert set(after(6.0, behind=said)) == {"behind"}


def test_a_launch_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_meeting(*_: object) -> None:
        assert {LAUNCH, HOSTS_RENDEZVOUS} <= set(os.environ)
        raise RendezvousClosedError

    monkeypatch.setattr(launch, "Meeting", no_meeting)
    before = dict(os.environ)
    with pytest.raises(SettingsError, match="did not meet"):
        launch.launch([], DistributedSettings(processes=2), print)
    assert dict(os.environ) == before


def test_a_program_that_answers_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "FIRST_SECONDS", 0.5)
    with socket.create_server((HERE, 0)) as silent:
        port = silent.getsockname()[1]
        place = MeetingPlace(f"{HERE}:{port}", HERE, is_here=False)
        with pytest.raises(SettingsError, match=f"at {HERE}:{port} does not answer as the rendezvous"):
            Meeting(DistributedSettings(nodes="2"), place, print)


def test_a_meeting_place_that_answers_nothing_for_a_while_is_tried_again(
    machine: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = machine()._meeting

    def silent() -> None:
        raise SettingsError("does not answer")

    monkeypatch.setattr(found, "_new_handler", silent)
    with pytest.raises(RendezvousConnectionError, match="does not answer"):
        found._connect(time.monotonic() + 30)


def test_machines_that_do_not_meet_say_why(machine: Callable[[], Any]) -> None:
    stays, ends = machine(), machine()
    place = MeetingPlace("alpha:29400", HERE, is_here=False)
    assert meet(stays)[:2] == (0, 1)
    ends._meeting.shutdown()
    with pytest.raises(RendezvousClosedError) as raised:
        meet(stays)
    first = launch._not_met(place, raised.value, None)
    again = launch._not_met(place, raised.value, stays._meeting)
    assert (first.exit_code, again.exit_code) == (SETTINGS, LOST)
    assert all("at alpha:29400: another machine has ended the run" in one.message for one in (first, again))
    assert "--resume" in again.hint


@pytest.mark.parametrize(("asked", "code", "starts"), [(False, LOST, 10), (True, STOPPED, 0)])
def test_processes_that_a_signal_ends_as_they_begin_are_not_started_again(
    machine: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, asked: bool, code: int, starts: int
) -> None:
    ended: Any = SimpleNamespace(exitcode=-signal.SIGTERM)
    result = RunResult(WorkerState.FAILED, failures={0: ended})
    monkeypatch.setattr(LocalElasticAgent, "_monitor_workers", lambda *_: result)
    agent = machine()
    agent.stop_asked = asked
    agent._monitor_workers(agent._worker_group)
    assert (agent._code, agent._remaining_restarts) == (code, starts)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"nodes": "2", "run_id": "lbb"}, "has --rdzv-id cpulm, and this one --rdzv-id lbb"),
        ({"nodes": "2:3"}, "has --nnodes 2, and this one --nnodes 2:3"),
    ],
)
def test_machines_of_different_runs_do_not_wait_for_each_other(
    machine: Callable[..., Any], other: dict[str, str], said: str
) -> None:
    first = machine(nodes="2")
    where = first._meeting._place.endpoint
    place = MeetingPlace(where, HERE, is_here=False)
    with pytest.raises(SettingsError, match=f"the run that meets at {where} {said}"):
        Meeting(DistributedSettings.model_validate(other), place, print)
    returns = machine(where, nodes="2")._meeting
    returns.has_met = True
    Meeting(DistributedSettings.model_validate(other), MeetingPlace(where, HERE, is_here=True), print)
    with pytest.raises(LostPeerError, match=f"the run that meets at {where} has "):
        returns._connect(time.monotonic() + 100)


def test_a_machine_that_waits_says_for_how_many_where_and_what_to_type(
    machine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meeting_place, "NOTICE_SECONDS", 0)
    first, second, third = (machine(nodes="2") for _ in range(3))
    where = f"{first._meeting._place.endpoint} (--rdzv-id cpulm)"
    with ThreadPoolExecutor() as pool:
        met, said = pool.submit(meet, first), ""
        while "so far)" not in said:
            assert not met.done()
            time.sleep(0.05)
            said += capsys.readouterr().out
        assert said.startswith(f"waiting at {where} for 1 more of 2 machines: type there the same command")
        meet(second)
        met.result()
        late, said = pool.submit(meet, third), ""
        while f"the run at {where} has all its 2 machines: waiting until it loses one" not in said:
            assert not late.done()
            time.sleep(0.05)
            said += capsys.readouterr().out
        first._meeting.shutdown()
        assert isinstance(late.exception(), RendezvousGracefulExitError)


def test_machines_that_do_not_come_are_counted(
    machine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "JOIN_SECONDS", 0.5)
    alone = machine(nodes="2")
    with pytest.raises(RendezvousTimeoutError) as raised:
        meet(alone)
    error = launch._not_met(alone._meeting._place, raised.value, alone._meeting)
    assert f"at {alone._meeting._place.endpoint}: 1 of 2 machines came within" in error.message


def test_a_machine_where_nothing_listens_yet_is_waited_for() -> None:
    port, said = free_port(), []
    with socket.socket() as late:

        def start_there(text: str) -> None:
            said.append(text)
            late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            late.bind((HERE, port))
            late.listen()

        wait_for(f"{HERE}:{port}", 100.0, start_there)
    assert said[0].startswith(f"nothing listens at {HERE}:{port}: waiting until the same command is started")
    with pytest.raises(SettingsError, match=f"cannot reach the rendezvous {HERE}:{port}"):
        wait_for(f"{HERE}:{port}", 0.0, print)
