"""``cpulm sysinfo``: this machine, and what cpulm will choose on it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cpulm.cli.setting_flags import JsonResult

if TYPE_CHECKING:
    from cpulm.system.machine import Choices, Machine

_NAME_WIDTH = 16
"""The names of all lists share a width, so that their values stand in one column."""

_Pairs = list[tuple[str, object]]


def sysinfo(
    json: JsonResult = False,
) -> None:
    """Show this machine, and what cpulm will choose on it and why.

    Shows processor, memory, disk, software and GPUs. Cores and memory are those that *this process* may
    use, within CPU affinity and container limits.

    **Examples**

        cpulm sysinfo

        cpulm sysinfo --json | jq .choices.threads
    """
    from cpulm.system.machine import choose, read_machine
    from cpulm.ui.console import print_json

    machine = read_machine()
    choices = choose(machine)
    if json:
        print_json({"machine": machine, "choices": choices})
    else:
        _show(machine, choices)


def _show(machine: Machine, choices: Choices) -> None:
    from cpulm.ui.console import show_warning, stdout
    from cpulm.ui.tables import key_values, rows

    console = stdout()
    sections = {
        "Processor": _processor(machine),
        "Memory and disk": _memory(machine),
        "Software": _software(machine),
    }
    for title, pairs in sections.items():
        console.print(key_values(title, [(name.ljust(_NAME_WIDTH), value) for name, value in pairs]))
        console.print()
    chosen = [
        ("device", choices.device.value, choices.device.reason),
        ("threads", choices.threads.value, choices.threads.reason),
        ("precision", choices.precision.value, choices.precision.reason),
        ("compile", "yes" if choices.compile.value else "no", choices.compile.reason),
        ("preset", choices.preset.value, choices.preset.reason),
    ]
    console.print(rows("What cpulm will choose here", ["what", "choice", "why"], chosen))
    for note in choices.notes:
        show_warning(note)


def _processor(machine: Machine) -> _Pairs:
    from cpulm.units import format_bytes

    cores = f"{machine.physical_cores} physical, {machine.logical_cores} logical"
    bound = machine.usable_logical < machine.logical_cores
    usable = f"{machine.usable_logical} logical by affinity" if bound else "all"
    if machine.cpu_quota is not None:
        usable += f", {machine.cpu_quota:g} by the container's quota"
    if machine.performance_cores is not None:
        usable += f", {machine.performance_cores} performance cores"
    caches = ", ".join(f"{name} {format_bytes(size)}" for name, size in machine.caches.items())
    return [
        ("model", f"{machine.cpu_model} ({machine.architecture})"),
        ("cores", cores),
        ("usable here", usable),
        ("instructions", ", ".join(machine.instruction_sets) or "none of those that speed training up"),
        ("caches", caches or None),
        ("frequency", f"{machine.max_mhz / 1000:.2f} GHz" if machine.max_mhz else None),
    ]


def _memory(machine: Machine) -> _Pairs:
    from cpulm.system.keep_awake import without_sleep
    from cpulm.units import format_bytes

    total, available = format_bytes(machine.memory_total_bytes), format_bytes(machine.memory_available_bytes)
    ram = f"{available} available of {total}"
    if machine.memory_limit_bytes is not None:
        ram += " (the container's limit)"
    swap = f"{format_bytes(machine.swap_free_bytes)} free of {format_bytes(machine.swap_total_bytes)}"
    sleepless = sys.platform == "linux" and without_sleep()
    power, percent = machine.power.source, machine.power.battery_percent
    return [
        ("RAM", ram),
        ("swap", swap if machine.swap_total_bytes else "none"),
        ("disk", f"{format_bytes(machine.disk_free_bytes)} free in this folder"),
        ("sleep", "none; if this is a virtual machine, its host must stay awake" if sleepless else None),
        ("power", power if percent is None else f"{power}, battery at {percent:.0f}%"),
    ]


def _software(machine: Machine) -> _Pairs:
    torch, compiler = machine.torch, machine.compiler
    pairs: _Pairs = [
        ("system", machine.system),
        ("Python", machine.python),
        ("torch", f"{torch.version}, for {torch.accelerator or 'the CPU'}" if torch else "not installed"),
        ("torch's math", torch.maths if torch else None),
        ("C++ compiler", f"{compiler.command}, {compiler.version}" if compiler else machine.compiler_problem),
        ("kernels", _kernels(machine)),
    ]
    return (
        pairs
        + [("GPU", _gpu(gpu.name, gpu.memory_bytes)) for gpu in machine.gpus]
        + ([] if machine.gpus else [("GPU", "none found")])
    )


def _kernels(machine: Machine) -> str:
    """Where the kernels for the CPU come from."""
    from cpulm.kernel_variants import shipped_library

    _, variant = shipped_library(machine.instruction_sets)
    if variant is not None:
        return f"brought by cpulm, for {variant.instructions}"
    return "compiled on this machine" if machine.has_kernels else f"none: {machine.compiler_problem}"


def _gpu(name: str, memory_bytes: int | None) -> str:
    from cpulm.units import format_bytes

    return f"{name}, {format_bytes(memory_bytes)}" if memory_bytes else name
