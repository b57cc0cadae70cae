"""Reads the machine's properties that affect training, and chooses defaults from them, without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

from cpulm.kernel_variants import shipped_library
from cpulm.system.cgroup import Limits, read_limits
from cpulm.system.cpu import Cpu, architecture, worth_using
from cpulm.system.host import Power, read_host
from cpulm.system.precisions import cpu_precision
from cpulm.system.software import Compiler, Gpu, Torch, find_compiler, read_gpus, read_torch
from cpulm.system.thread_variables import (
    ThreadVariables,
    read_thread_variables,
    without_torchruns_default,
)

GIB = 1024**3
_T = TypeVar("_T")


@dataclass(frozen=True)
class Machine:
    """The machine's properties. Sizes are in bytes, frequency in MHz; None means none or unknown.

    ``usable_logical`` counts the logical processors that affinity lets the process run on, and
    ``cpu_quota`` is the container's processor time in processors. ``usable_cores`` is the number of
    physical cores worth using within both: on a machine with two kinds of cores often only the
    fast ones. ``memory_total_bytes`` and ``memory_available_bytes`` respect the container's limit.

    If a run has several ``processes`` here, cores and memory are the share of one; ``others_of_run`` are the
    process ids of the others.
    """

    cpu_model: str
    architecture: str
    physical_cores: int
    logical_cores: int
    usable_logical: int
    usable_cores: int
    performance_cores: int | None
    cpu_quota: float | None
    instruction_sets: tuple[str, ...]
    caches: dict[str, int]
    max_mhz: float | None
    memory_total_bytes: int
    memory_available_bytes: int
    memory_limit_bytes: int | None
    swap_total_bytes: int
    swap_free_bytes: int
    disk_free_bytes: int
    power: Power
    system: str
    python: str
    torch: Torch | None
    compiler: Compiler | None
    compiler_problem: str
    gpus: tuple[Gpu, ...]
    openmp: ThreadVariables = field(default_factory=ThreadVariables)
    processes: int = 1
    others_of_run: tuple[int, ...] = ()

    @property
    def has_kernels(self) -> bool:
        """Whether runs on the CPU will most likely have the compiled kernels."""
        return shipped_library(self.instruction_sets)[0] is not None or (
            self.compiler is not None and not self.system.startswith("Windows")
        )

    @property
    def no_torch_compile(self) -> str:
        """The reason that torch.compile cannot compile for the CPU; empty if it can."""
        return self.compiler_problem if self.compiler is None else self.compiler.lacks

    @property
    def cpu_identity(self) -> str:
        """The CPU's architecture, model and instruction sets, on which code compiled for it depends."""
        return " ".join((self.architecture, self.cpu_model, *self.instruction_sets))


@dataclass(frozen=True)
class Choice(Generic[_T]):
    """A chosen value and the reason in words."""

    value: _T
    reason: str


@dataclass(frozen=True)
class Choices:
    """The defaults for a machine.

    ``precision`` is that of a sufficiently wide model. ``compile`` is whether sufficiently long runs are
    compiled. ``preset`` is a suggestion for the first night. ``notes`` are problems to fix before a run.
    """

    device: Choice[str]
    threads: Choice[int]
    precision: Choice[str]
    compile: Choice[bool]
    preset: Choice[str]
    notes: tuple[str, ...]


def read_machine() -> Machine:
    """Read the machine's properties in about 0.1 s; other programs are queried in parallel."""
    compiler = _in_background(find_compiler)
    gpus = _in_background(lambda: read_gpus(architecture()))
    torch = read_torch()
    cpu, limits = read_cpu(), read_limits()
    host = read_host()
    memory_total, memory_available = within_limits(
        host.memory_total_bytes, host.memory_available_bytes, limits
    )
    limited = limits.memory_bytes is not None and limits.memory_bytes == memory_total
    found_compiler, compiler_problem = compiler()
    return Machine(
        cpu_model=cpu.model,
        architecture=cpu.architecture,
        physical_cores=cpu.physical_cores,
        logical_cores=cpu.logical_cores,
        usable_logical=cpu.usable_logical,
        usable_cores=usable_cores(cpu, limits.cpus),
        performance_cores=cpu.usable_performance,
        cpu_quota=limits.cpus,
        instruction_sets=cpu.instruction_sets,
        caches=dict(cpu.caches),
        max_mhz=cpu.max_mhz,
        memory_total_bytes=memory_total,
        memory_available_bytes=memory_available,
        memory_limit_bytes=limits.memory_bytes if limited else None,
        swap_total_bytes=host.swap_total_bytes,
        swap_free_bytes=host.swap_free_bytes,
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        power=host.power,
        system=host.system,
        python=".".join(str(part) for part in sys.version_info[:3]),
        torch=torch,
        compiler=found_compiler,
        compiler_problem=compiler_problem,
        gpus=gpus(),
        openmp=read_thread_variables(),
    )


def share_of(machine: Machine, processes: int, others_of_run: tuple[int, ...] = ()) -> Machine:
    """Return the share of ``machine`` that one of a run's ``processes`` on it has."""
    if processes == 1:
        return machine
    return replace(
        machine,
        usable_cores=max(1, machine.usable_cores // processes),
        memory_available_bytes=machine.memory_available_bytes // processes,
        openmp=without_torchruns_default(machine.openmp),
        processes=processes,
        others_of_run=others_of_run,
    )


def read_cpu() -> Cpu:
    """Read the processors of this machine."""
    if sys.platform == "darwin":
        from cpulm.system.macos import read_sysctl

        return read_sysctl(_sysctl_text())
    if sys.platform == "win32":
        from cpulm.system.windows import read_windows

        return read_windows()
    from cpulm.system.linux import read_linux

    return read_linux()


def usable_cores(cpu: Cpu, quota: float | None) -> int:
    """Return how many physical cores get a thread each: those worth using within the quota, at least 1.

    A fractional processor of the quota stays unused: threads wait for each other by spinning, and with more
    threads than the quota allows they would spend the quota on spinning.
    """
    cores = worth_using(cpu.usable_physical, cpu.usable_performance)
    return max(1, cores if quota is None else min(cores, int(quota)))


def within_limits(total: int, available: int, limits: Limits) -> tuple[int, int]:
    """Return total and available memory in bytes, the machine's or the container's, whichever is less."""
    if limits.memory_bytes is None or limits.memory_bytes >= total:
        return total, available
    left = max(0, limits.memory_bytes - (limits.memory_used_bytes or 0))
    return limits.memory_bytes, min(available, left)


def choose(machine: Machine) -> Choices:
    """Return cpulm's defaults on ``machine``."""
    device = _choose_device(machine)
    precision = _choose_precision(machine, device.value)
    return Choices(
        device=device,
        threads=_choose_threads(machine),
        precision=precision,
        compile=_choose_compile(machine, device.value, precision.value),
        preset=_choose_preset(machine, device.value, precision.value),
        notes=_notes(machine),
    )


def _choose_device(machine: Machine) -> Choice[str]:
    for backend in ("cuda", "mps"):
        gpu = next((gpu for gpu in machine.gpus if gpu.backend == backend), None)
        if gpu is None:
            continue
        if backend == "cuda" and machine.torch is not None and machine.torch.accelerator is None:
            return Choice("cpu", f"{gpu.name} is present, but this torch is built for the CPU only")
        return Choice(backend, gpu.name)
    return Choice("cpu", "no GPU that torch can use")


def _choose_threads(machine: Machine) -> Choice[int]:
    """Choose OMP_NUM_THREADS or MKL_NUM_THREADS if set, as torch does, else one thread per core worth using.

    OMP_THREAD_LIMIT limits both.
    """
    asked, limit, name = machine.openmp.num_threads, machine.openmp.thread_limit, machine.openmp.name
    if asked is None:
        choice = Choice(machine.usable_cores, _why_threads(machine))
    elif asked > machine.usable_logical:
        most = machine.usable_logical
        choice = Choice(most, f"{name} is {asked}, and this process may use {most} logical cores")
    else:
        choice = Choice(asked, f"{name} is {asked}")
    if limit is not None and limit < choice.value:
        choice = Choice(limit, f"OMP_THREAD_LIMIT is {limit}")
    ignored = "".join(f"; {one} is not a number of threads" for one in machine.openmp.ignored)
    return replace(choice, reason=choice.reason + ignored)


def _why_threads(machine: Machine) -> str:
    cores = machine.usable_cores
    if machine.processes > 1:
        share = f"the share of one of {machine.processes} processes of the run on this machine"
        dropped = machine.openmp.num_threads is None and read_thread_variables().num_threads is not None
        return f"{share}; torchrun's OMP_NUM_THREADS=1 is not used" if dropped else share
    if machine.cpu_quota is not None and max(1, int(machine.cpu_quota)) == cores < machine.physical_cores:
        return f"the container's quota is {machine.cpu_quota:g} processors"
    if machine.performance_cores == cores:
        return "one per performance core; efficiency cores would slow them down"
    if cores < machine.physical_cores:
        return f"one per physical core that this process may use, of {machine.physical_cores}"
    return "one per physical core"


def _choose_precision(machine: Machine, device: str) -> Choice[str]:
    if device == "cuda":
        capability = next((gpu.compute_capability for gpu in machine.gpus if gpu.backend == "cuda"), None)
        if capability is not None and float(capability) >= 8.0:
            return Choice("bf16", "the GPU supports bf16")
        known = f"the GPU has {capability}" if capability else "the driver does not report the GPU's"
        return Choice("fp32", f"bf16 needs compute capability 8.0; {known}")
    if device == "mps":
        return Choice("fp32", "the safe choice on MPS")
    return Choice(*cpu_precision(machine.instruction_sets, kernels=machine.has_kernels))


def _choose_compile(machine: Machine, device: str, precision: str) -> Choice[bool]:
    if device == "mps":
        return Choice(False, "torch.compile is not worth it on MPS")
    if precision == "int8":
        return Choice(False, "torch.compile does not speed up int8 products")
    if machine.no_torch_compile and device == "cpu":
        return Choice(
            False, f"it needs a C++ compiler with OpenMP's and Python's headers; {machine.no_torch_compile}"
        )
    if precision == "fp32" and device == "cpu" and machine.has_kernels:
        return Choice(False, "kernels compiled for this CPU are faster than torch.compile")
    with_what = machine.compiler.version if machine.compiler else "the GPU's own compiler"
    return Choice(True, f"runs long enough to gain, with {with_what}")


_PRESETS = (("large", 38.9, 16.0, 4), ("medium", 13.9, 6.0, 3), ("small", 2.0, 1.0, 2))
"""Preset, the hours of one core that it takes in fp32 and in int8 on the reference machine (docs/presets.md),
and the GiB of available memory that it needs."""
_NIGHT_HOURS = 8.0


def _choose_preset(machine: Machine, device: str, precision: str) -> Choice[str]:
    """The largest preset that finishes within a night, even at 0.6 of the speed that was measured."""
    available = machine.memory_available_bytes / GIB
    if device != "cpu":
        return Choice("large", "a GPU finishes it well within a night")
    cores_word = "core" if machine.usable_cores == 1 else "cores"
    have = f"{machine.usable_cores} {cores_word}, {available:.1f} GiB available"
    for preset, fp32_hours, int8_hours, gib in _PRESETS:
        hours = (int8_hours if precision == "int8" else fp32_hours) / machine.usable_cores
        if hours <= 0.6 * _NIGHT_HOURS and available >= gib:
            about = f"{hours:.0f} h" if hours >= 1.5 else f"{60 * hours:.0f} min"
            return Choice(preset, f"finishes within a night, in about {about}: {have}, {precision}")
    return Choice("tiny", f"suits a machine of this size: {have}")


def _notes(machine: Machine) -> tuple[str, ...]:
    notes = []
    if machine.power.source == "battery":
        notes.append("running on battery: plug in before a long run")
    if machine.disk_free_bytes < 2 * GIB:
        notes.append(f"only {machine.disk_free_bytes / GIB:.1f} GiB are free on this folder's disk")
    if machine.torch is None:
        notes.append("torch is not installed: nothing can be trained")
    return tuple(notes)


def _in_background(work: Callable[[], _T]) -> Callable[[], _T]:
    """Start ``work`` in a thread; calling the returned function waits for the result or raises the error."""
    from concurrent.futures import ThreadPoolExecutor

    executor = ThreadPoolExecutor(1)
    future = executor.submit(work)
    executor.shutdown(wait=False)
    return future.result


def _sysctl_text() -> str:
    try:
        return subprocess.run(
            ["/usr/sbin/sysctl", "hw", "machdep.cpu"], capture_output=True, text=True, timeout=2
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
