"""How the processes of a run know that the others live, and what they ended with.

Every process counts up a number of its own in the run's store (torch's TCPStore, which the launcher keeps).
One whose number stands still has vanished: killed, suspended, or cut off. One that ends by itself says so.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from cpulm.errors import CpulmError, LostPeerError, error_of_code

BEAT_SECONDS = 1.0
SILENT_SECONDS = 20.0
"""A process whose number has stood still for so long counts as lost."""
_HURRY_SECONDS = 0.05
_OBITUARY_SECONDS = 4.0
"""How long the reason of a broken connection is waited for."""


class Pulse:
    """Beats for this process, and watches those of the others, from a thread of its own.

    Args:
        store: torch's store of the run.
        own: another connection to it, for the thread alone: one connection answers one thread at a time.
        names: of every rank, for messages.
        pids_here: of the other processes on this machine.
    """

    def __init__(
        self,
        store: Any,
        own: Any,
        rank: int,
        names: Sequence[str],
        pids_here: Sequence[int] = (),
    ) -> None:
        self._own, self._store = store, own
        self._rank, self._names = rank, names
        self.pids_here = tuple(pids_here)
        self._interval = BEAT_SECONDS
        self._lost: LostPeerError | None = None
        self._ended: dict[int, CpulmError] = {}
        self._finished: set[int] = set()
        self._lock, self._over = threading.Lock(), threading.Event()
        now = time.monotonic()
        self._seen = {other: (b"", now) for other in range(len(names)) if other != rank}
        self._looked = self._checked = now
        self._patient_until = 0.0
        self._parent = os.getppid()
        self._thread = threading.Thread(target=self._run, name="cpulm-pulse", daemon=True)
        self._thread.start()

    def check(self, error: Exception | None = None) -> None:
        """As :meth:`cpulm.distributed.world.World.check`."""
        self._check_rendezvous()
        if error is not None:
            self._interval = _HURRY_SECONDS
        deadline = time.monotonic() + (_OBITUARY_SECONDS if error is not None else 0.0)
        while True:
            with self._lock:
                ended = next(iter(self._ended.values()), None) or self._lost
            if ended is not None:
                raise ended from error
            if time.monotonic() >= deadline:
                break
            time.sleep(0.1)
        if error is not None:
            raise LostPeerError(f"lost {self._stillest()}: {in_short(error)}") from error

    def end(self, error: CpulmError | None) -> None:
        """Tell the others how this process ends, and see that they know; then stop beating."""
        told = {"code": 0 if error is None else error.exit_code}
        if error is not None:
            told |= {"message": error.message, "hint": error.hint}  # type: ignore[dict-item]
        self._interval = _HURRY_SECONDS
        with suppress(RuntimeError):  # the store may be gone
            self._own.set(f"end/{self._rank}", json.dumps(told))
        deadline = time.monotonic() + _OBITUARY_SECONDS
        # Without a launcher it is the main process that keeps the store.
        while self._rank == 0 and len(self._finished) < len(self._names) - 1 and self._thread.is_alive():
            if time.monotonic() > deadline:
                break
            time.sleep(_HURRY_SECONDS)
        self._over.set()
        self._thread.join(timeout=5.0)

    def wait_for_main(self) -> None:
        """Wait until the main process has ended by itself, so that everything is written.

        Raises:
            CpulmError: what it ended with.
            LostPeerError: if it has vanished.
        """
        self._interval = _HURRY_SECONDS
        while 0 not in self._finished:
            self.check()
            time.sleep(_HURRY_SECONDS)

    def _check_rendezvous(self) -> None:
        """Lose the rendezvous if the thread has waited too long for an answer: a store that is cut off sends
        none for hours."""
        now = time.monotonic()
        if now - self._checked > SILENT_SECONDS:  # this process was suspended, or has not waited for anybody
            self._patient_until = now + SILENT_SECONDS
        self._checked = now
        if now - self._looked > SILENT_SECONDS and now > self._patient_until:
            self._lose(f"lost the rendezvous of the run: no answer for {now - self._looked:.0f} seconds")

    def _stillest(self) -> str:
        """The process whose last beat is the oldest."""
        with self._lock:
            return self._names[min(self._seen, key=lambda other: self._seen[other][1])]

    def _run(self) -> None:
        beats = 0
        while not self._over.is_set():
            beats += 1
            try:
                self._store.set(f"beat/{self._rank}", str(beats))
                self._look()
            except RuntimeError as error:  # torch's, of a store that is gone
                self._lose(f"lost the rendezvous of the run: {in_short(error)}")
                return
            if os.getppid() != self._parent:  # the launcher is gone: save and end, as it would have asked
                self._parent = os.getppid()
                os.kill(os.getpid(), signal.SIGTERM)
            self._over.wait(self._interval)

    def _look(self) -> None:
        others = [other for other in self._seen if other not in self._finished]
        now = time.monotonic()
        if now - self._looked > SILENT_SECONDS / 2:  # this process was suspended, and has heard nobody
            with self._lock:
                self._seen = {other: (beat, now) for other, (beat, _) in self._seen.items()}
        self._looked = now
        for other in others:
            if self._store.check([f"end/{other}"]):
                self._note_end(other, self._store.get(f"end/{other}"))
                continue
            beat = self._store.get(f"beat/{other}") if self._store.check([f"beat/{other}"]) else b""
            last, since = self._seen[other]
            if beat != last:
                with self._lock:
                    self._seen[other] = (beat, now)
            elif now - since > SILENT_SECONDS:
                self._lose(f"{self._names[other]} has been silent for {now - since:.0f} seconds")

    def _note_end(self, other: int, content: bytes) -> None:
        told = _read_end(content)
        with self._lock:
            self._finished.add(other)
            if told["code"]:
                message = f"{self._names[other]}: {told['message']}"
                self._ended[other] = error_of_code(told["code"], message, told["hint"])

    def _lose(self, message: str) -> None:
        with self._lock:
            self._lost = self._lost or LostPeerError(message)


def _read_end(content: bytes) -> dict[str, Any]:
    """What a process told of its end; anything else than that counts as a crash."""
    try:
        told = json.loads(content)
        code = told["code"]
        if isinstance(code, int) and 0 <= code < 256:
            return {"code": code, "message": str(told.get("message", "")), "hint": str(told.get("hint", ""))}
    except (ValueError, KeyError, TypeError):
        pass
    return {"code": 1, "message": "ended in an unknown way", "hint": ""}


def in_short(error: Exception) -> str:
    """What an error of torch's says, without the place in torch's sources and the advice."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"\[/[^\]]*\] ", "", line).partition(". ")[0][:200]
