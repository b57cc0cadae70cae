"""How a run uses the machine: device, threads, precision, compilation, and why each was chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cpulm import __version__
from cpulm.cache_dir import cache_folder
from cpulm.errors import SettingsError
from cpulm.kernel_variants import shipped_library
from cpulm.model.int8_linear import TorchQuantizer
from cpulm.model.transformer import Transformer
from cpulm.native.int8 import Int8Kernels
from cpulm.native.kernels import Kernels
from cpulm.native.library import KernelsUnavailableError, check_shipped, compile_kernels
from cpulm.settings import ModelSettings, RuntimeSettings
from cpulm.system.allocator import keep_freed_memory
from cpulm.system.machine import Machine, choose
from cpulm.system.precisions import INT8_SETS, cpu_precision, has_fast_int8

MATH_VARIABLES = (
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DYNAMIC",
    "OMP_DYNAMIC",
    "OPENBLAS_CORETYPE",
)
"""Environment variables that change the bits of what torch's libraries compute."""


@dataclass(frozen=True)
class Runtime:
    """The device, threads, precision and kernels that a run uses.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``int8``.
        precision_reason: the reason for it, in words.
        kernels: the compiled kernels; None: everything runs in torch.
        libraries: the other facts that the bits depend on, see :func:`library_facts`.
        notes: the choices and their reasons, in words.
        others_of_run: process ids of the run's other processes on this machine.
        processes: of the run, on all machines.
    """

    device: torch.device
    device_name: str
    threads: int
    precision: str
    compiled: bool = False
    precision_reason: str = field(default="", compare=False)
    kernels: Kernels | None = field(default=None, compare=False)
    libraries: Mapping[str, str] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    others_of_run: tuple[int, ...] = field(default=(), compare=False)
    processes: int = 1

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context for forward passes."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def facts(self) -> dict[str, Any]:
        """Return all facts that the bits of a resumed run depend on."""
        return {
            "device": self.device.type,
            "device_name": self.device_name,
            "threads": self.threads,
            "processes": self.processes,
            "precision": self.precision,
            "precision_reason": self.precision_reason,
            "compiled": self.compiled,
            "kernels": self.kernels is not None,
            **self.libraries,
        }

    @property
    def int8_kernels(self) -> Int8Kernels | None:
        """The int8 kernels; None if the precision is not int8, or the kernels have none for it."""
        return self.kernels.int8 if self.kernels is not None and self.precision == "int8" else None

    def equip(self, model: Transformer) -> None:
        """Set the kernels and the quantizer that ``model`` computes with."""
        model.use_kernels(self.kernels)
        model.use_int8((self.int8_kernels or TorchQuantizer()) if self.precision == "int8" else None)

    def with_note(self, note: str, **changes: Any) -> Runtime:
        """Return a copy with one more note, and with ``changes``."""
        return replace(self, notes=(*self.notes, note), **changes)


def choose_runtime(
    settings: RuntimeSettings,
    machine: Machine,
    model: ModelSettings | None = None,
    requested: str = "requested",
) -> Runtime:
    """Choose the device, the threads, the kernels and the precision by rules; nothing is measured.

    Sets torch's number of threads. Whether the step is compiled is decided later.

    Args:
        model: the model that will be trained; None: nothing is trained, and ``precision: auto`` is fp32 on
            a CPU.
        requested: the reason that the notes give for a value that ``settings`` request.

    Raises:
        SettingsError: if the requested device, precision or number of threads is not available.
    """
    device, device_note = _device(settings.device)
    threads, thread_note = _threads(settings.threads, machine, requested)
    torch.set_num_threads(threads)
    # On x86 a product of denormals takes a hundred times as long, and training does not need them.
    torch.set_flush_denormal(True)
    keep_freed_memory()
    kernels, kernels_note = _kernels(settings.kernels, device, machine, requested)
    precision: str = settings.precision
    reason = requested
    _require_precision(precision, device, machine)
    if precision == "auto":
        precision, reason = _precision(device, machine, model, kernels=kernels is not None)
    return Runtime(
        device=device,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else machine.cpu_model,
        threads=threads,
        precision=precision,
        precision_reason=reason,
        kernels=kernels,
        libraries=library_facts(machine, kernels),
        notes=(device_note, thread_note, f"{precision}: {reason}", *kernels_note),
        others_of_run=machine.others_of_run,
    )


def library_facts(
    machine: Machine, kernels: Kernels | None, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the versions, instruction sets and environment variables that the bits of a run depend on.

    ``cpu_capability`` is the level that torch's own kernels use, which ATEN_CPU_CAPABILITY may lower.
    """
    compiler = ""
    if kernels is not None and kernels.variant:
        compiler = f"brought by cpulm, for {kernels.variant}"
    elif kernels is not None and machine.compiler is not None:
        compiler = machine.compiler.version
    return {
        "cpulm": __version__,
        "torch": str(torch.__version__),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_sets": " ".join(machine.instruction_sets),
        "kernels_compiler": compiler,
        "kernels_key": kernels.name if kernels is not None else "",
        "math_variables": " ".join(f"{name}={environ[name]}" for name in MATH_VARIABLES if name in environ),
    }


def _device(requested: str) -> tuple[torch.device, str]:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if requested == "auto":
        chosen = next(name for name in ("cuda", "mps", "cpu") if available[name])
        return torch.device(chosen), f"{chosen}: the first available of cuda, mps, cpu"
    if not available[requested]:
        names = ", ".join(name for name, is_available in available.items() if is_available)
        raise SettingsError(
            f"runtime.device = {requested!r} is not available on this machine", f"available: {names}"
        )
    return torch.device(requested), f"{requested}: requested"


def _threads(number: int | None, machine: Machine, reason: str) -> tuple[int, str]:
    if number is None:
        choice = choose(machine).threads
        return choice.value, f"{_format_threads(choice.value)}: {choice.reason}"
    if number > machine.usable_logical:
        raise SettingsError(
            f"runtime.threads = {number}, but this process may use {machine.usable_logical} logical cores",
            f"give at most {machine.usable_logical}, or leave it unset",
        )
    limit = machine.openmp.thread_limit
    if limit is not None and limit < number:
        return limit, f"{_format_threads(limit)}: OMP_THREAD_LIMIT allows no more, {number} were requested"
    return number, f"{_format_threads(number)}: {reason}"


def _format_threads(number: int) -> str:
    return f"{number} thread{'' if number == 1 else 's'}"


def _kernels(
    requested: str, device: torch.device, machine: Machine, reason: str
) -> tuple[Kernels | None, tuple[str, ...]]:
    """Return the compiled kernels, None if they are switched off or not available, and a note on them."""
    if device.type != "cpu":
        return None, ()
    if requested == "off":
        return None, (f"no compiled kernels: {reason}",)
    shipped, problem = _shipped_kernels(machine)
    if shipped is not None:
        return shipped, (_note(shipped, f"kernels for {shipped.variant}", ""),)
    if machine.compiler is None:
        return None, (f"no compiled kernels: {problem or machine.compiler_problem}",)
    command, version = machine.compiler.command, machine.compiler.version
    try:
        library, note = compile_kernels(command, version, machine.cpu_identity, cache_folder() / "kernels")
        kernels = Kernels(library)
    except KernelsUnavailableError as error:
        return None, (f"no compiled kernels: {problem or error}",)
    return kernels, (
        _note(kernels, "kernels compiled for this CPU", "; ".join(filter(None, (problem, note)))),
    )


def _shipped_kernels(machine: Machine) -> tuple[Kernels | None, str]:
    """Return the kernels that cpulm's wheel brought for this CPU, or None, and what is wrong with them."""
    library, variant = shipped_library(machine.instruction_sets)
    if library is None or variant is None:
        return None, ""
    try:
        check_shipped(library)
        return Kernels(library, variant.instructions), ""
    except KernelsUnavailableError as error:
        return None, str(error)


def _note(kernels: Kernels, which: str, problem: str) -> str:
    one = "" if kernels.threaded else "they run on one thread, because torch has no OpenMP library to share"
    return "; ".join(filter(None, (f"norms, attention and activation in {which}", one, problem)))


def _precision(
    device: torch.device, machine: Machine, model: ModelSettings | None, *, kernels: bool
) -> tuple[str, str]:
    """Return what ``auto`` chooses, and the reason."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return "bf16", "the GPU supports bf16"
        return "fp32", "the GPU does not support bf16"
    if device.type == "mps":
        return "fp32", "the safe choice on mps"
    if model is None:
        return "fp32", "nothing is trained"
    return cpu_precision(machine.instruction_sets, kernels=kernels, model=model)


def _require_precision(requested: str, device: torch.device, machine: Machine) -> None:
    if requested == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise SettingsError("runtime.precision = 'bf16' is not available on this GPU", "use fp32")
    if requested != "int8":
        return
    if device.type != "cpu":
        raise SettingsError(
            f"runtime.precision = 'int8' is for CPUs, and the device is {device.type}",
            "use bf16, or --device cpu",
        )
    if not has_fast_int8(machine.instruction_sets):
        raise SettingsError(
            f"runtime.precision = 'int8' needs a CPU with int8 products ({', '.join(INT8_SETS)}), "
            "and this one has none",
            "leave runtime.precision at auto",
        )
