"""Short versions of the soak tests: the same code, fewer cases. ``docs/reliability.md`` has the long ones.

Those that take half a minute are left to ``pytest -m soak``: kills, full disks and rising memory have tests
of their own in the rooms that they concern.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import damage, fuzz

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def soak(*arguments: str) -> dict[str, Any]:
    """The figures of one soak in a process of its own, where nothing has threads before a fork."""
    command = [sys.executable, "-m", "benchmarks.soak", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "takes Linux and root" in done.stderr:
        pytest.skip("this process is not root on Linux")
    assert done.returncode == 0, done.stderr + done.stdout
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(autouse=True)
def _one_thread(fresh_cache: Path) -> Any:
    """What a soak sets for its whole process goes back."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has torch loaded")
def test_killed_at_random_moments_nothing_is_lost() -> None:
    result = soak("kills", "--count", "6", "--by-command", "0", "--seed", "3")
    assert result["forked"]["kills"] == 6
    assert result["forked"]["faults"] == 0


def test_damage_is_noticed_or_harmless() -> None:
    result = damage.damage(70, resumed=2)
    assert sum(sum(outcomes.values()) for outcomes in result["files"].values()) == 70
    assert sum(outcomes.get("noticed", 0) for outcomes in result["files"].values()) > 40
    assert damage.is_good(result), damage.told(result)


@pytest.mark.skipif(sys.platform != "linux", reason="gives up rights of Linux's root")
def test_odd_places_are_one_message_each() -> None:
    result = soak("places", "--count", "12", "--first", "400")
    assert result["cases"] == 12
    assert result["faults"] == []


@pytest.mark.soak
def test_a_disk_that_refuses_costs_nothing_that_was_saved() -> None:
    result = soak("disk", "--count", "4", "--seed", "4")
    assert result["full disk"]["cases"] == 4
    assert result["full disk"]["warned"]


@pytest.mark.soak
@pytest.mark.skipif(sys.platform == "win32", reason="draws on a pseudo-terminal")
def test_memory_does_not_grow_with_the_steps() -> None:
    result = soak("night", "--count", "600")
    assert result["steps"] == 600
    assert result["at"][0]["open_files"] == result["at"][-1]["open_files"]


def test_no_file_brings_an_error_that_nobody_can_read() -> None:
    result = fuzz.fuzz(400)
    assert not [row for row in result["targets"] if row["fault"]], "\n".join(fuzz.told(result))
    assert result["cases"] >= 390
