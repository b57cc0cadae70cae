"""The meeting of a run's machines: torch's rendezvous, made to outlive what happens between real machines.

torch's own compares the clocks of different machines, and takes one that is 15 seconds behind for dead. It
ends with the first connection that is lost, and says only once where the processes connect.
"""

from __future__ import annotations

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
)

from cpulm.distributed.meeting_place import MeetingPlace, wait_for
from cpulm.distributed.network import answer_of
from cpulm.errors import SettingsError
from cpulm.settings.distributed_settings import DistributedSettings

JOIN_SECONDS = 600
"""How long a machine waits for the others to join, and to reach them again."""
LAST_CALL_SECONDS = 5
"""How long more machines are waited for, once there are enough."""
FIRST_SECONDS = 45
"""How long the meeting place may take to answer, once it is reached."""
ANSWER_SECONDS = 60
"""How long a machine that has met the others may take to say how many processes it starts."""

WORD_SECONDS, WORDS_MISSED = 5, 3
"""How often a machine says that it is there, and how many times it may not until it counts as lost."""


class Meeting(RendezvousHandler):
    """torch's rendezvous at a meeting place; a lost connection to it is made again.

    Args:
        say: tells the user what is waited for.

    Attributes:
        has_met: whether the processes of all machines have been started before.
    """

    def __init__(
        self, settings: DistributedSettings, place: MeetingPlace, say: Callable[[str], None]
    ) -> None:
        self._place, self._say = place, say
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
        self.has_met = False
        self._connected = True
        self._handler = self._new_handler()

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the others; after a meeting, also if the connection was lost."""
        deadline = time.monotonic() + JOIN_SECONDS
        while True:
            # torch says where a round's store is only in the first round of a machine: one that joins later
            # would wait for it in vain, and one that stays would use the store of one that may have left.
            self._handler._bootstrap_store_info = None
            try:
                if not self._connected:
                    self._connect(deadline)
                return self._handler.next_rendezvous()
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
        backend, store = answer_of(self._place.endpoint, lambda: create_backend(parameters), FIRST_SECONDS)
        holder = StateHolder(backend, self._settings)
        return DynamicRendezvousHandler(self._node, self._settings, backend.name, store, holder)

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
    """

    def __init__(self, backend: RendezvousBackend, settings: RendezvousSettings) -> None:
        super().__init__(backend, settings)
        self._limit = (settings.keep_alive_interval * settings.keep_alive_max_attempt).total_seconds()
        self._heard: dict[Any, tuple[datetime, float]] = {}
        self._looked = time.monotonic()

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
