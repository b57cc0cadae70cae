"""Reads the system's name, memory, swap and power source."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from cpulm.system.cpu import UNKNOWN
from cpulm.system.small_file import read_small_file


@dataclass(frozen=True)
class Power:
    """``source`` is ``mains``, ``battery`` or ``unknown``; ``battery_percent`` is None without one."""

    source: str
    battery_percent: float | None = None


@dataclass(frozen=True)
class Host:
    """The system's name, and the whole machine's memory and swap in bytes, ignoring a container's limits."""

    system: str
    memory_total_bytes: int
    memory_available_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int
    power: Power


def read_host() -> Host:
    """Read the system's name, memory, swap and power with psutil."""
    import psutil

    memory = psutil.virtual_memory()
    try:
        swap = psutil.swap_memory()
        swap_total, swap_free = swap.total, swap.free
    except (OSError, RuntimeError):  # a system that hides or lacks its swap counters
        swap_total = swap_free = 0
    return Host(system_name(), memory.total, memory.available, swap_total, swap_free, read_power())


def system_name(os_release: Path = Path("/etc/os-release")) -> str:
    """Return the operating system's common name, on Linux with the kernel's release."""
    if sys.platform == "win32":
        build = sys.getwindowsversion().build
        return f"Windows {11 if build >= 22000 else 10} (build {build})"
    if sys.platform == "darwin":
        import platform

        return f"macOS {platform.mac_ver()[0]}"
    kernel = f"{os.uname().sysname} {os.uname().release}"
    name = pretty_name(os_release)
    return f"{name}, {kernel}" if name else kernel


def pretty_name(os_release: Path) -> str:
    """Return the distribution's name in a file such as ``/etc/os-release``; empty if there is none."""
    lines = read_small_file(os_release).splitlines()
    found = (line.partition("=")[2] for line in lines if line.startswith("PRETTY_NAME="))
    return next(found, "").strip("\"'")


def read_power() -> Power:
    """Read the current power source; a machine without a battery is on mains."""
    return linux_power() if sys.platform == "linux" else _power_by_psutil()


def _power_by_psutil() -> Power:
    import psutil

    try:
        battery = psutil.sensors_battery()
    except (AttributeError, NotImplementedError, OSError, RuntimeError):
        return Power(UNKNOWN)
    if battery is None:
        return Power("mains")
    source = {True: "mains", False: "battery"}.get(battery.power_plugged, UNKNOWN)
    return Power(source, round(float(battery.percent), 1))


def linux_power(supplies: Path = Path("/sys/class/power_supply")) -> Power:
    """Read the power source from the kernel's power supplies; with several batteries, the mean charge.

    psutil would count any battery as the machine's, even that of a wireless mouse, and report a desktop
    computer as running on battery. A supply of scope ``Device`` does not power the machine.
    """
    try:
        found = list(supplies.iterdir())
    except OSError:
        return Power(UNKNOWN)
    own = [supply for supply in found if _line(supply / "scope") != "Device"]
    batteries = [supply for supply in own if _line(supply / "type") == "Battery"]
    batteries = [battery for battery in batteries if _line(battery / "present") != "0"]
    charges = [_line(battery / "capacity") for battery in batteries]
    known = [float(charge) for charge in charges if charge.isdecimal()]
    percent = round(sum(known) / len(known), 1) if known else None
    online = [_line(supply / "online") for supply in own if _line(supply / "type") == "Mains"]
    states = {_line(battery / "status") for battery in batteries}
    if not batteries or "1" in online:
        return Power("mains", percent)
    if "Discharging" in states:
        return Power("battery", percent)
    if states & {"Charging", "Full", "Not charging"}:  # charged by USB, whose entry has no direction
        return Power("mains", percent)
    return Power("battery" if online else UNKNOWN, percent)


def _line(file: Path) -> str:
    return read_small_file(file).strip()
