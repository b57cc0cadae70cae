"""Mains or battery: synthetic trees of the kernel's power supplies, and waiting for mains power."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cpulm.system import power
from cpulm.system.host import Power, linux_power, read_power
from cpulm.system.power import BatteryWatch, battery_warning
from cpulm.system.run_clock import RunClock

Supplies = dict[str, dict[str, str]]

MAINS_ON = {"type": "Mains", "online": "1"}
MAINS_OFF = {"type": "Mains", "online": "0"}
MOUSE = {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": "55", "present": "1"}


def battery(status: str, capacity: str = "80", present: str = "1") -> dict[str, str]:
    return {"type": "Battery", "status": status, "capacity": capacity, "present": present}


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        pytest.param({}, Power("mains"), id="a desktop"),
        pytest.param({"hidpp_battery_0": MOUSE}, Power("mains"), id="a desktop with a wireless mouse"),
        pytest.param({"BAT0": battery("Not charging", present="0")}, Power("mains"), id="an empty bay"),
        pytest.param({"AC": MAINS_ON, "BAT0": battery("Charging")}, Power("mains", 80.0), id="charging"),
        pytest.param({"AC": MAINS_OFF, "BAT0": battery("Discharging")}, Power("battery", 80.0), id="on it"),
        pytest.param(
            {"ADP1": MAINS_ON, "BAT0": battery("Discharging")},
            Power("mains", 80.0),
            id="an adapter too weak for the load",
        ),
        pytest.param(
            {"AC": MAINS_OFF, "BAT0": battery("Not charging", "90"), "BAT1": battery("Discharging", "40")},
            Power("battery", 65.0),
            id="two batteries, the second in use",
        ),
        pytest.param(
            {"ucsi": {"type": "USB", "online": "1"}, "BAT0": battery("Discharging")},
            Power("battery", 80.0),
            id="feeding a phone by USB",
        ),
        pytest.param(
            {"ucsi": {"type": "USB", "online": "1"}, "BAT0": battery("Full", "100")},
            Power("mains", 100.0),
            id="fed by USB",
        ),
        pytest.param({"AC": MAINS_OFF, "BAT0": battery("Unknown")}, Power("battery", 80.0), id="excluded"),
        pytest.param({"BAT0": battery("Unknown", "nonsense")}, Power("unknown"), id="told nothing"),
    ],
)  # fmt: skip
def test_power_supplies_of_linux(supplies: Supplies, expected: Power, tmp_path: Path) -> None:
    for name, files in supplies.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text + "\n", encoding="utf-8")
    assert linux_power(tmp_path) == expected


def test_a_linux_without_power_supplies_is_unknown(tmp_path: Path) -> None:
    assert linux_power(tmp_path / "missing") == Power("unknown")


def test_this_machine_gives_an_answer() -> None:
    found = read_power()
    assert found.source in {"mains", "battery", "unknown"}
    assert found.battery_percent is None or 0 <= found.battery_percent <= 100


@pytest.mark.parametrize(
    ("found", "warned"),
    [
        (Power("mains", 80.0), ""),
        (Power("unknown"), ""),
        (Power("battery", 63.4), "running on battery (63% left): "),
        (Power("battery"), "running on battery: "),
    ],
)
def test_a_run_on_battery_gets_a_warning(found: Power, warned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "read_power", lambda: found)
    warning = battery_warning()
    assert (warning or "").startswith(warned)
    assert (warning is not None) == bool(warned)


class Machine:
    """Power that goes through what a test lists, one entry a reading; the last one stays."""

    def __init__(self, *sources: str) -> None:
        self.sources = list(sources)
        self.readings = 0

    def __call__(self) -> Power:
        self.readings += 1
        return Power(self.sources[min(self.readings, len(self.sources)) - 1], 42.0)


def test_the_system_is_asked_every_ten_seconds_at_most() -> None:
    machine, now = Machine("mains"), [100.0]
    watch = BatteryWatch(machine, monotonic=lambda: now[0])
    for now[0] in (100.0, 101.0, 109.9, 110.0, 119.0):
        assert not watch.paused()
    assert machine.readings == 2


@pytest.mark.parametrize("source", ["mains", "unknown"])
def test_on_mains_or_where_it_is_not_known_nothing_waits(source: str) -> None:
    told: list[str] = []
    BatteryWatch(Machine(source)).wait_for_mains(lambda: False, told.append, RunClock())
    assert told == []


def test_on_battery_it_waits_for_the_mains_and_says_so_once_each() -> None:
    machine, clock = Machine("battery", "battery", "mains"), RunClock()
    watch, told = BatteryWatch(machine, every_seconds=0.2), list[str]()
    began = time.monotonic()
    watch.wait_for_mains(lambda: False, told.append, clock)
    waited = time.monotonic() - began
    assert machine.readings == 3
    assert told[0] == "on battery (42% left): training pauses until the machine is plugged in"
    assert told[1].startswith("plugged in again: training continues after ")
    assert len(told) == 2
    assert waited >= 0.4
    assert clock.now() < 0.3  # waiting is not run time
    watch.wait_for_mains(lambda: False, told.append, clock)
    assert len(told) == 2


def test_a_stop_ends_the_waiting() -> None:
    asked: list[None] = []

    def should_stop() -> bool:
        asked.append(None)
        return len(asked) > 2

    watch, told = BatteryWatch(Machine("battery"), every_seconds=0.0), list[str]()
    watch.wait_for_mains(should_stop, told.append, RunClock())
    assert len(told) == 1
    assert watch.paused()
