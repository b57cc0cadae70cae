"""Switches short spinning on and off in torch's OpenMP library."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from cpulm.linked_functions import linked_function
from cpulm.system.cpu_use import SHORTEST_SECONDS, OthersUse
from cpulm.system.openmp import ShortSpin

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def is_short(spin: ShortSpin) -> bool:
    return spin.is_on


def teams() -> int:
    return sum(thread.name == "cpulm-openmp" for thread in threading.enumerate())


@pytest.fixture
def spin(monkeypatch: pytest.MonkeyPatch) -> ShortSpin:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    torch.ones(2, 2) @ torch.ones(2, 2)
    if linked_function("GOMP_parallel") is None:
        pytest.skip("no OpenMP library is loaded here")
    return ShortSpin()


def test_switching_holds_a_team_and_lets_it_go(spin: ShortSpin) -> None:
    x = torch.randn(512, 512)
    before = x.add(1.0).sum()
    for _ in range(3):
        spin.switch(True)
        spin.switch(True)
        assert is_short(spin)
        assert teams() <= 1
        assert torch.equal(x.add(1.0).sum(), before)
        spin.switch(False)
        assert not is_short(spin)
        assert teams() == 0
        assert torch.equal(x.add(1.0).sum(), before)


@pytest.mark.parametrize("name", VARIABLES)
def test_settings_by_the_user_stay(spin: ShortSpin, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "100")
    chosen = ShortSpin()
    chosen.switch(True)
    assert not chosen.is_on
    assert teams() == 0


def test_a_busy_program_is_seen_and_this_process_is_not() -> None:
    others = OthersUse()
    assert others.read() is None
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        event = threading.Event()
        event.wait(2 * SHORTEST_SECONDS)
        found = others.read()
        assert found is not None
        assert found > 0.2
        assert others.read() is None
        assert others.newest() == found
        assert OthersUse().newest() > 0.2
    finally:
        busy.kill()
        busy.wait()
