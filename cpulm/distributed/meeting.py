"""The meeting of a run's machines: torch's rendezvous, made to outlive what happens between real machines.

torch's own compares the clocks of different machines, and takes one that is 15 seconds behind for dead. It
ends with the first connection that is lost, and says only once where the processes connect.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousBackend,
    RendezvousSettings,
    RendezvousTimeout,
    _BackendRendezvousStateHolder,
    _RendezvousState,
)

from cpulm.distributed.meeting_place import JOIN_SECONDS, MeetingPlace, Notices, wait_for
from cpulm.distributed.network import answer_of
from cpulm.distributed.pulse import in_short
from cpulm.errors import LostPeerError, SettingsError
from cpulm.settings.distributed_settings import DistributedSettings

LAST_CALL_SECONDS = 5
"""How long more machines are waited for, once there are enough."""
FIRST_SECONDS = 15
"""How long the meeting place may take to answer, once it is reached."""
ANSWER_SECONDS = 60
"""How long a machine that has met the others may take to say how many processes it starts."""

_MEETING = "cpulm/meeting"
"""The key under which the machine where the others meet says of which run."""
WORD_SECONDS, WORDS_MISSED = 5, 3
"""How often a machine says that it is there, and how many times it may not until it counts as lost."""


class Meeting(RendezvousHandler):
    """torch's rendezvous at a meeting place; a lost connection to it is made again.

    Args:
        say: tells the user what is waited for.
        command: what is to be typed on the other machines.

    Attributes:
        has_met: whether the processes of all machines have been started before.
        came: ``1 of 2 machines came``: how many were there last.
    """

    def __init__(
        self,
        settings: DistributedSettings,
        place: MeetingPlace,
        say: Callable[[str], None],
        command: str = "the same command",
    ) -> None:
        self._place, self._say, self._command = place, say, command
        self._notices: Notices | None = None
        fewest, most = settings.node_range
        self._settings = RendezvousSettings(
            run_id=str(uuid.uuid4()) if most == 1 else settings.run_id,
            min_nodes=fewest,
            max_nodes=most,
            timeout=RendezvousTimeout(timedelta(seconds=JOIN_SECONDS), timedelta(seconds=LAST_CALL_SECONDS)),
            keep_alive_interval=timedelta(seconds=WORD_SECONDS),
            keep_alive_max_attempt=WORDS_MISSED,
        )
        self._node = DynamicRendezvousHandler._node_desc_generator.generate(place.own_address)
        self.has_met, self.came = False, f"0 of {fewest} machines came"
        self._connected = True
        self._handler = self._new_handler()

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the others; after a meeting, also if the connection was lost."""
        deadline = time.monotonic() + JOIN_SECONDS
        self._notices = Notices(self._say)
        while True:
            # torch says where a round's store is only in the first round of a machine: one that joins later
            # would wait for it in vain, and one that stays would use the store of one that may have left.
            self._handler._bootstrap_store_info = None
            try:
                if not self._connected:
                    self._connect(deadline)
                info = self._handler.next_rendezvous()
                self._notices = None
                return info
            except RendezvousConnectionError:
                self._connected = False
                if self._place.is_here or not self.has_met or time.monotonic() > deadline:
                    raise

    def num_nodes_waiting(self) -> int:
        """How many would join; 0 if the connection is lost, which the processes notice too, and end."""
        try:
            return self._handler.num_nodes_waiting() if self._connected else 0
        except RendezvousConnectionError:
            self._connected = False
            return 0

    def _connect(self, deadline: float) -> None:
        self._say(
            f"lost the connection to {self._place.endpoint}: trying for {JOIN_SECONDS // 60} minutes to "
            "reach it again"
        )
        self._handler._stop_heartbeats()
        try:
            wait_for(self._place.endpoint, deadline - time.monotonic(), lambda _: None, again=True)
            self._handler = self._new_handler()
        except SettingsError as error:
            raise RendezvousConnectionError(error.message) from error
        self._connected = True

    def _new_handler(self) -> DynamicRendezvousHandler:
        parameters = RendezvousParameters(
            backend="c10d",
            endpoint=self._place.endpoint,
            run_id=self._settings.run_id,
            min_nodes=self._settings.min_nodes,
            max_nodes=self._settings.max_nodes,
            is_host=self._place.is_here,
            read_timeout=ANSWER_SECONDS,
        )

        def connect() -> tuple[RendezvousBackend, Any]:
            backend, store = create_backend(parameters)
            self._compare(store)
            return backend, store

        backend, store = answer_of(self._place.endpoint, connect, FIRST_SECONDS)
        holder = StateHolder(backend, self._settings, self._tell)
        return DynamicRendezvousHandler(self._node, self._settings, backend.name, store, holder)

    def _compare(self, store: Any) -> None:
        """See that the machines at this place meet for the same run; otherwise they would wait in vain.

        Raises:
            SettingsError: if they do not.
            LostPeerError: likewise, if this machine has met others there before.
        """
        fewest, most = self._settings.min_nodes, self._settings.max_nodes
        nodes = str(fewest) if fewest == most else f"{fewest}:{most}"
        mine = {"--rdzv-id": self._settings.run_id, "--nnodes": nodes}
        if self._place.is_here:
            store.set(_MEETING, json.dumps(mine))
            return
        try:
            theirs = json.loads(store.get(_MEETING))
        except RuntimeError as error:
            raise RendezvousConnectionError(in_short(error)) from error
        for option, value in mine.items():
            if theirs.get(option) != value:
                raise (LostPeerError if self.has_met else SettingsError)(
                    f"the run that meets at {self._place.endpoint} has {option} {theirs.get(option)}, and "
                    f"this one {option} {value}",
                    f"give the same {option} on all machines; another run needs another port",
                )

    def _tell(self, state: _RendezvousState) -> None:
        """Say what is waited for, if this machine waits for others."""
        if self._notices is None:
            return
        count, fewest = len(state.participants), self._settings.min_nodes
        where = f"{self._place.endpoint} (--rdzv-id {self._settings.run_id})"
        if self._node in state.redundancy_list:
            self._notices.tell(f"the run at {where} has all its {count} machines: waiting until it loses one")
        elif self._node in state.participants and count < fewest:
            self.came = f"{count} of {fewest} machines came"
            self._notices.tell(
                f"waiting at {where} for {fewest - count} more of {fewest} machines: type there "
                f"{self._command}"
            )

    def get_backend(self) -> str:
        """As torch's, like all that follow."""
        return str(self._handler.get_backend())

    @property
    def use_agent_store(self) -> bool:
        return bool(self._handler.use_agent_store)

    def is_closed(self) -> bool:
        return bool(self._handler.is_closed())

    def set_closed(self) -> None:
        self._handler.set_closed()

    def get_run_id(self) -> str:
        return self._settings.run_id

    def shutdown(self) -> bool:
        if not self._connected:
            self._handler._stop_heartbeats()
            return False
        return bool(self._handler.shutdown())


class StateHolder(_BackendRendezvousStateHolder):
    """What the machines have written, without those that are silent.

    Silent is one whose last word has stayed the same for too long on this machine's clock. torch compares the
    time of that word, on the other machine's clock, with the time here.

    Args:
        tell: is called with what the machines have written, whenever that is read.
    """

    def __init__(
        self,
        backend: RendezvousBackend,
        settings: RendezvousSettings,
        tell: Callable[[_RendezvousState], None],
    ) -> None:
        super().__init__(backend, settings)
        self._tell = tell
        self._limit = (settings.keep_alive_interval * settings.keep_alive_max_attempt).total_seconds()
        self._heard: dict[Any, tuple[datetime, float]] = {}
        self._looked = time.monotonic()

    def sync(self) -> bool | None:
        """As torch's."""
        changed: bool | None = super().sync()
        self._tell(self._state)
        return changed

    def _sanitize(self) -> None:
        now, words = time.monotonic(), self._state.last_heartbeats
        if now - self._looked > self._limit / 2:  # this machine was suspended, and has heard nobody
            self._heard.clear()
        self._looked = now
        before = self._heard
        self._heard = {
            node: before[node] if node in before and before[node][0] == word else (word, now)
            for node, word in words.items()
        }
        today = datetime.now(timezone.utc)
        self._state.last_heartbeats = {
            node: today - timedelta(seconds=now - since) for node, (_, since) in self._heard.items()
        }
        super()._sanitize()
        self._state.last_heartbeats = {node: words[node] for node in self._state.last_heartbeats}
