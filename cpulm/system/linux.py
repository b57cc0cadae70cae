"""Reads processors from Linux's /proc/cpuinfo and /sys/devices/system/cpu.

Sources: the kernel's Documentation/ABI/testing/sysfs-devices-system-cpu, and
Documentation/arch/arm64/elf_hwcaps.rst for the names of ARM's features.
"""

from __future__ import annotations

import os
from pathlib import Path

from cpulm.system.cpu import UNKNOWN, Cpu, architecture, clean_model, logical_count, name_instruction_sets
from cpulm.system.small_file import read_small_file

_APPLE = "0x61"
_ARM_PARTS = {
    (_APPLE, "0x000"): "Apple silicon, as a virtual machine",
    ("0x41", "0xd03"): "Arm Cortex-A53",
    ("0x41", "0xd05"): "Arm Cortex-A55",
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76",
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd41"): "Arm Cortex-A78",
    ("0x41", "0xd44"): "Arm Cortex-X1",
    ("0x41", "0xd47"): "Arm Cortex-A710",
    ("0x41", "0xd48"): "Arm Cortex-X2",
    ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2",
    ("0xc0", "0xac3"): "Ampere-1",
}


def parse_cpuinfo(text: str) -> dict[str, str]:
    """Parse ``/proc/cpuinfo``: the keys of the first processor, and those of the machine after the last.

    x86 and ARM write a block per processor; ARM adds the board's ``Hardware`` and ``Model`` at the end.
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip(), value.strip())
    return values


def cpu_model(cpuinfo: dict[str, str]) -> str:
    """Return the processor's common name; ARM's is derived from its implementer and part numbers."""
    if "model name" in cpuinfo:
        return clean_model(cpuinfo["model name"])
    if "CPU part" in cpuinfo:
        ids = (cpuinfo.get("CPU implementer", ""), cpuinfo["CPU part"])
        name = _ARM_PARTS.get(ids, f"ARM implementer {ids[0] or UNKNOWN} part {ids[1]}")
        return f"{name} ({cpuinfo['Model']})" if "Model" in cpuinfo else name
    return cpuinfo.get("Model", cpuinfo.get("Hardware", cpuinfo.get("cpu", UNKNOWN)))


def instruction_sets(cpuinfo: dict[str, str]) -> tuple[str, ...]:
    """Return the relevant instruction sets of x86's ``flags`` or ARM's ``Features``.

    A Linux guest on Apple silicon may announce bf16 instructions that fault when executed, so they are
    not counted there.
    """
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    if cpuinfo.get("CPU implementer") == _APPLE:
        flags.discard("bf16")
    return name_instruction_sets(flags)


def parse_cpu_list(text: str) -> set[int]:
    """Parse the kernel's list of processors, ``0-3,8,10-11``.

    Raises:
        ValueError: if the text is not such a list.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def read_linux(root: Path = Path("/"), affinity: set[int] | None = None) -> Cpu:
    """Read the processors from ``root``'s /proc and /sys.

    Args:
        root: the folder that holds ``proc`` and ``sys``.
        affinity: the logical processors that the process may run on; if None, the actual ones.
    """
    usable = affinity if affinity is not None else _affinity()
    devices = root / "sys/devices"
    cpuinfo = parse_cpuinfo(read_small_file(root / "proc/cpuinfo"))
    online = _cpu_list(devices / "system/cpu/online") or set(range(logical_count()))
    usable = (usable & online) or online
    cores = _cores(devices, online, cpuinfo)
    usable_cores = [core for core in cores if core & usable]
    fast = _performance_cpus(devices, online)
    return Cpu(
        model=cpu_model(cpuinfo),
        architecture=architecture(),
        physical_cores=len(cores),
        logical_cores=len(online),
        usable_logical=len(usable),
        usable_physical=len(usable_cores),
        usable_performance=sum(1 for core in usable_cores if core & fast) if fast else None,
        instruction_sets=instruction_sets(cpuinfo),
        caches=_caches(devices / f"system/cpu/cpu{min(usable)}/cache"),
        max_mhz=_max_mhz(devices / f"system/cpu/cpu{min(usable)}/cpufreq", cpuinfo),
    )


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(logical_count()))


def _cores(devices: Path, online: set[int], cpuinfo: dict[str, str]) -> list[frozenset[int]]:
    """Return the logical processors of each physical core."""
    found: set[frozenset[int]] = set()
    for cpu in online:
        topology = devices / f"system/cpu/cpu{cpu}/topology"
        siblings = _cpu_list(topology / "core_cpus_list") or _cpu_list(topology / "thread_siblings_list")
        if not siblings:
            return _cores_by_count(online, cpuinfo)
        found.add(frozenset(siblings & online))
    return list(found)


def _cores_by_count(online: set[int], cpuinfo: dict[str, str]) -> list[frozenset[int]]:
    """Return the cores from the counts in ``/proc/cpuinfo``, if the kernel does not list them."""
    try:
        threads = max(1, int(cpuinfo["siblings"]) // int(cpuinfo["cpu cores"]))
    except (KeyError, ValueError, ZeroDivisionError):
        threads = 1
    ordered = sorted(online)
    return [frozenset(ordered[at : at + threads]) for at in range(0, len(ordered), threads)]


def _performance_cpus(devices: Path, online: set[int]) -> set[int]:
    """Return the fast processors of a machine with two kinds; empty if all are alike or it is unknown.

    Intel's hybrid processors list them under ``cpu_core``; ARM gives every processor a capacity, of
    which the fast ones have at least half of the largest.
    """
    intel = _cpu_list(devices / "cpu_core/cpus") & online
    if intel:
        return intel if intel != online else set()
    capacities: dict[int, int] = {}
    for cpu in online:
        text = read_small_file(devices / f"system/cpu/cpu{cpu}/cpu_capacity")
        if not text.strip().isdigit():
            return set()
        capacities[cpu] = int(text)
    top = max(capacities.values())
    fast = {cpu for cpu, capacity in capacities.items() if capacity * 2 >= top}
    return fast if fast != online else set()


def _caches(folder: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = (read_small_file(index / name).strip() for name in ("level", "type", "size"))
        if kind in ("Data", "Unified") and size[:-1].isdigit():
            scale = {"K": 1024, "M": 1024**2}.get(size[-1], 1)
            sizes["L1d" if level == "1" else f"L{level}"] = int(size[:-1]) * scale
    return sizes


def _max_mhz(cpufreq: Path, cpuinfo: dict[str, str]) -> float | None:
    """Return the highest clock that the driver reports, else the one in ``/proc/cpuinfo``."""
    khz = read_small_file(cpufreq / "cpuinfo_max_freq").strip()
    if khz.isdigit():
        return int(khz) / 1000
    try:
        return float(cpuinfo["cpu MHz"])
    except (KeyError, ValueError):
        return None


def _cpu_list(path: Path) -> set[int]:
    try:
        return parse_cpu_list(read_small_file(path))
    except ValueError:
        return set()
