"""Starts the processes of a run on this machine with torchrun's own launcher, in this process.

The launcher (torch.distributed.elastic) meets those on other machines, starts the processes, and starts all
of them again from the last checkpoint if one is lost or a machine joins. Unlike torchrun, it starts nothing
again that would only end in the same way, and it ends with the exit code of the processes.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousTimeoutError,
)

from cpulm import exit_codes
from cpulm.command import cpulm_command
from cpulm.distributed.begun_run import LAUNCH, begun_run
from cpulm.distributed.join import AGAIN, HOSTS_RENDEZVOUS, START, require_gloo
from cpulm.distributed.meeting import Meeting
from cpulm.distributed.meeting_place import JOIN_SECONDS, MeetingPlace, meeting_place
from cpulm.distributed.pulse import in_short
from cpulm.errors import CpulmError, LostPeerError, SettingsError, StoppedError
from cpulm.exit_codes import exit_in_words
from cpulm.settings.distributed_settings import DistributedSettings

SAVE_SECONDS = 600
"""How long processes that are asked to end may take to save."""
_FINAL = (
    *(exit_codes.SETTINGS, exit_codes.DATA, exit_codes.DIVERGED, exit_codes.RESOURCES),
    *(exit_codes.STOPPED, exit_codes.ABORTED),
)
"""Ends that a new start would only repeat."""
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


def launch(arguments: Sequence[str], settings: DistributedSettings, say: Callable[[str], None]) -> int:
    """Run ``cpulm ARGUMENTS`` in as many processes as ``settings`` say; return their exit code.

    Args:
        say: tells the user what the launcher waits for.

    Raises:
        SettingsError: if the machines cannot meet.
        LostPeerError: if machines were lost, and did not meet again.
        StoppedError: if it was interrupted while no process was there.
    """
    require_gloo()
    with _environment_restored(), tempfile.TemporaryDirectory(prefix="cpulm-launch-") as folder:
        place = meeting_place(settings, say)
        if place.is_here:
            os.environ[HOSTS_RENDEZVOUS] = "1"
        os.environ[LAUNCH] = str(Path(folder) / "run")
        before = logging.root.manager.disable
        if not os.environ.get("CPULM_DEBUG"):
            logging.disable(logging.CRITICAL)  # torch's launcher; the processes speak for themselves
        meeting = None
        try:
            meeting = Meeting(settings, place, say, shlex.join(["cpulm", *arguments]))
            agent = _Agent(arguments, settings, place, meeting, say)
            with _passing_on_signals(agent):
                return agent.exit_code()
        except (RendezvousError, DistError) as error:
            raise _not_met(place, error, meeting) from error
        finally:
            logging.disable(before)


@contextmanager
def _environment_restored() -> Iterator[None]:
    """What the processes inherit is taken back from this one's environment."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _not_met(place: MeetingPlace, error: Exception, meeting: Meeting | None) -> CpulmError:
    """The error of machines that did not meet: the first time, or after one of them was lost."""
    here = socket.gethostname()
    came = "" if meeting is None else meeting.came
    reasons: dict[type[Exception], str] = {
        RendezvousTimeoutError: f"{came} within {JOIN_SECONDS // 60} minutes",
        RendezvousClosedError: "another machine has ended the run",
    }
    reason = reasons.get(type(error), in_short(error))
    if meeting is not None and meeting.has_met:
        return LostPeerError(
            f"{here} lost the other machines, and did not meet them again at {place.endpoint}: {reason}",
            "start the command again on all of them, with --resume: it continues from its last checkpoint",
        )
    return SettingsError(
        f"{here} did not meet the other machines at {place.endpoint}: {reason}",
        f"start the same command on all of them within {JOIN_SECONDS // 60} minutes",
    )


class _Agent(LocalElasticAgent):
    """torchrun's agent, which knows what cpulm's exit codes mean."""

    def __init__(
        self,
        arguments: Sequence[str],
        settings: DistributedSettings,
        place: MeetingPlace,
        meeting: Meeting,
        say: Callable[[str], None],
    ) -> None:
        self._say, self._meeting = say, meeting
        program, *rest = cpulm_command(*arguments)
        spec = WorkerSpec(
            role="cpulm",
            local_world_size=settings.processes,
            entrypoint=program,
            args=tuple(rest),
            rdzv_handler=meeting,
            max_restarts=settings.max_restarts,
            monitor_interval=0.1,
            local_addr=place.own_address,
        )
        super().__init__(spec, DefaultLogsSpecs(), exit_barrier_timeout=60, shutdown_timeout=SAVE_SECONDS)
        self._code = exit_codes.FINISHED
        self.stop_asked = False
        """Whether a signal has asked the processes to end; those that had just begun end without a word."""

    def exit_code(self) -> int:
        """Run to the end, and return the processes' exit code."""
        try:
            self.run()
        finally:
            self._meeting.shutdown()
        return self._code

    def pids(self) -> list[int]:
        """The processes that are there now."""
        return [] if self._pcontext is None else list(self._pcontext.pids().values())

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        while True:
            try:
                self._meet(worker_group)
            except DistError:  # one that came to the meeting was lost before it could say who it is
                if self._remaining_restarts == 0:
                    raise
                self._remaining_restarts -= 1
                self._say("a machine was lost while the machines met: meeting again")
            else:
                if self._meeting.has_met:
                    os.environ[AGAIN] = "1"
                self._meeting.has_met = True
                return

    def _meet(self, worker_group: WorkerGroup) -> None:
        super()._rendezvous(worker_group)
        met: Any = worker_group  # torch's types say that nothing has met
        if met.group_rank == 0:
            met.store.set(START, str(uuid.uuid4()))  # the store is of this start alone
        os.environ[START] = met.store.get(START).decode()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        started: dict[int, int] = super()._start_workers(worker_group)
        _handle_signals(self)  # torch's launcher has just set its own, which do not wait for a save
        return started

    def _stop_workers(self, worker_group: WorkerGroup) -> None:  # noqa: ARG002 - torch's signature
        self._shutdown(timeout=SAVE_SECONDS)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            self._code = _reason([failure.exitcode for failure in result.failures.values()])
            if self._code == exit_codes.LOST and self.stop_asked:
                self._say("stopped: start it again, and it continues from its last checkpoint")
                self._code = exit_codes.STOPPED
            others_wait = not self.stop_asked and self._meeting.num_nodes_waiting() > 0
            if self._code == exit_codes.STOPPED and others_wait:
                self._remaining_restarts += 1  # another machine's launcher stopped them, to let one join
            elif self._code in _FINAL or (self._code == exit_codes.BUG and begun_run() is None):
                self._remaining_restarts = 0
            elif self._remaining_restarts > 0:
                number = self._worker_group.spec.max_restarts - self._remaining_restarts + 1
                most = self._worker_group.spec.max_restarts
                self._say(
                    f"{exit_in_words(self._code)}: starting the processes again from the last checkpoint "
                    f"(restart {number} of {most})"
                )
        elif result.state == WorkerState.SUCCEEDED:
            self._code = exit_codes.FINISHED
        return result


def _reason(codes: Sequence[int]) -> int:
    """The exit code that explains the others: a process that lost another one, or was ended, is a result."""
    ended = (exit_codes.LOST, -signal.SIGTERM)
    code = next((code for code in codes if code not in ended), exit_codes.LOST)
    return code if code >= 0 else exit_codes.LOST


@contextmanager
def _passing_on_signals(agent: _Agent) -> Iterator[None]:
    """Pass signals on to the processes, which save and end; each is then an end of the launcher."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in _SIGNALS if hasattr(signal, name)}
    _handle_signals(agent)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _handle_signals(agent: _Agent) -> None:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        pids = agent.pids()
        if not pids:
            raise StoppedError("stopped before the processes of the run had begun", "start it again")
        agent.stop_asked = True
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
