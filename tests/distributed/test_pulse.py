"""Who counts as lost: a process whose number stands still, but not for one that was itself suspended."""

from __future__ import annotations

import threading
import time

import pytest

from cpulm.distributed import pulse
from cpulm.distributed.pulse import SILENT_SECONDS, Pulse
from cpulm.errors import LostPeerError


class Store(dict[str, bytes]):
    """The part of torch's store that the pulse uses; each look of a pulse frees one ``looked``."""

    looked = threading.Semaphore(0)

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        if keys[0].startswith("beat"):
            self.looked.release()
        return all(key in self for key in keys)


class Clock:
    """The module ``time``, with a clock that the test moves."""

    now = 1000.0
    sleep = staticmethod(time.sleep)

    def monotonic(self) -> float:
        return self.now


def test_only_a_process_that_stands_still_while_this_one_does_not_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, store = Clock(), Store({"beat/1": b"1"})
    monkeypatch.setattr(pulse, "time", clock)
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.01)
    watching = Pulse(store, store, 0, ["alpha", "beta"])

    def pass_by(seconds: float) -> None:
        clock.now += seconds
        for _ in range(2):  # the look that may have begun before, and a whole one after it
            assert store.looked.acquire(timeout=30)
        while store.looked.acquire(blocking=False):
            pass
        assert store.looked.acquire(timeout=30)

    pass_by(0.0)
    pass_by(100 * SILENT_SECONDS)  # suspended
    watching.check()
    for _ in range(4):
        pass_by(0.4 * SILENT_SECONDS)
    with pytest.raises(LostPeerError, match="beta has been silent for"):
        watching.check()
    monkeypatch.undo()
    store["end/1"] = b'{"code": 0}'  # else the end waits for it
    watching.end(None)


def test_a_store_that_gives_no_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, answers = Clock(), threading.Event()

    class CutOff(Store):
        def check(self, keys: list[str]) -> bool:
            answers.wait()
            return super().check(keys)

    monkeypatch.setattr(pulse, "time", clock)
    store = CutOff({"end/1": b'{"code": 0}'})
    waiting = Pulse(store, store, 0, ["alpha", "beta"])
    clock.now += 100 * SILENT_SECONDS  # suspended, and nothing heard since
    for _ in range(3):
        waiting.check()
        clock.now += 0.4 * SILENT_SECONDS
    with pytest.raises(LostPeerError, match="lost the rendezvous of the run: no answer for"):
        waiting.check()
    answers.set()
    monkeypatch.undo()
    waiting.end(None)
