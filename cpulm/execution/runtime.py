"""How a run uses the machine: device, threads, precision, compilation, and why each was chosen."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cpulm import __version__
from cpulm.cache_dir import cache_folder
from cpulm.errors import SettingsError
from cpulm.execution.compile_times import CompileTrial
from cpulm.execution.measurement_cache import remembered_precisions, remembered_threads
from cpulm.execution.precision import BlockShape, choose_int8, fast_int8
from cpulm.execution.stopwatch import best_seconds
from cpulm.execution.threads import choose_threads, numbers_to_try
from cpulm.model.int8_linear import TorchQuantizer
from cpulm.model.transformer import Transformer
from cpulm.native.int8 import Int8Kernels
from cpulm.native.kernels import Kernels
from cpulm.native.library import KernelsUnavailableError, compile_kernels
from cpulm.settings import RuntimeSettings
from cpulm.system.allocator import keep_freed_memory
from cpulm.system.machine import BF16_SETS, Machine, choose


@dataclass(frozen=True)
class Runtime:
    """What was chosen. ``notes`` says it in words; ``precision`` is ``fp32``, ``bf16`` or ``int8``.

    ``kernels`` are the compiled kernels, None where everything runs in torch.
    """

    device: torch.device
    device_name: str
    threads: int
    precision: str
    compiled: bool = False
    trial: CompileTrial | None = field(default=None, compare=False)
    kernels: Kernels | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the model runs forward."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def facts(self) -> dict[str, Any]:
        """What the bits of a resumed run depend on."""
        return {
            "device": self.device.type,
            "threads": self.threads,
            "precision": self.precision,
            "compiled": self.compiled,
            "kernels": self.kernels is not None,
        }

    @property
    def int8_kernels(self) -> Int8Kernels | None:
        """The kernels for int8, where that is the precision and they have them."""
        return self.kernels.int8 if self.kernels is not None and self.precision == "int8" else None

    def equip(self, model: Transformer) -> None:
        """Have the parts of ``model`` computed as was chosen."""
        model.use_kernels(self.kernels)
        model.use_int8((self.int8_kernels or TorchQuantizer()) if self.precision == "int8" else None)

    def noting(self, note: str, **changes: Any) -> Runtime:
        """A copy with one note more."""
        return replace(self, notes=(*self.notes, note), **changes)


def choose_runtime(settings: RuntimeSettings, machine: Machine, block: BlockShape | None = None) -> Runtime:
    """Take the device, set torch's threads, get the kernels, choose the precision; compilation comes later.

    Args:
        block: of the model that will be trained: where given, ``precision: auto`` may be int8, and the
            number of threads is measured where another one than the rules' may be faster.

    Raises:
        SettingsError: where the asked device or number of threads is not to be had.
    """
    device, device_note = _device(settings.device)
    threads, thread_note = _threads(settings.threads, machine)
    torch.set_num_threads(threads)
    # Denormals cost a hundred times a normal product on x86 and carry nothing that training needs.
    torch.set_flush_denormal(True)
    keep_freed_memory()
    kernels, kernels_note = _kernels(settings.kernels, device, machine)
    precision, precision_note = _precision(settings.precision, device, machine, block, kernels)
    if settings.threads is None and device.type == "cpu" and block is not None:
        threads, thread_note = _best_threads(machine, block, kernels, precision, thread_note)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine.cpu_model
    notes = (device_note, thread_note, precision_note, *kernels_note)
    return Runtime(device, name, threads, precision, kernels=kernels, notes=notes)


def _device(asked: str) -> tuple[torch.device, str]:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        taken = next(name for name in ("cuda", "mps", "cpu") if available[name])
        return torch.device(taken), f"{taken}: the first there is of cuda, mps, cpu"
    if not available[asked]:
        have = ", ".join(name for name, there in available.items() if there)
        raise SettingsError(f"runtime.device = {asked!r} is not to be had here", f"this machine has: {have}")
    return torch.device(asked), f"{asked}: asked for"


def _threads(asked: int | None, machine: Machine) -> tuple[int, str]:
    if asked is None:
        choice = choose(machine).threads
        return choice.value, f"{_so_many_threads(choice.value)}: {choice.reason}"
    if asked > machine.usable_logical:
        raise SettingsError(
            f"runtime.threads = {asked}, and this process may use {machine.usable_logical} logical cores",
            f"give at most {machine.usable_logical}, or leave it unset",
        )
    return asked, f"{_so_many_threads(asked)}: asked for"


def _best_threads(
    machine: Machine, block: BlockShape, kernels: Kernels | None, precision: str, note: str
) -> tuple[int, str]:
    """The number by a measurement, which torch is then set to; ``note`` is why the rules took theirs."""
    numbers = numbers_to_try(machine)
    if len(numbers) == 1 or precision == "bf16":
        return numbers[0], note
    quantizer = None
    if precision == "int8":
        quantizer = (kernels and kernels.int8) or TorchQuantizer()
    measured = f"{precision}; {measured_on(machine, kernels)}"
    chosen, said = choose_threads(numbers, block, quantizer, measured, remembered_threads())
    torch.set_num_threads(chosen)
    if chosen == numbers[0]:
        return chosen, f"{note}; {said}"
    return chosen, f"{_so_many_threads(chosen)}: {said}"


def _so_many_threads(number: int) -> str:
    return f"{number} thread{'' if number == 1 else 's'}"


def _kernels(asked: str, device: torch.device, machine: Machine) -> tuple[Kernels | None, tuple[str, ...]]:
    """The compiled kernels, where they are wanted and to be had, and what to say of them."""
    if device.type != "cpu":
        return None, ()
    if asked == "off":
        return None, ("no compiled kernels: asked for",)
    if machine.compiler is None:
        return None, (f"no compiled kernels: {machine.compiler_problem}",)
    cpu = " ".join((machine.architecture, machine.cpu_model, *machine.instruction_sets))
    try:
        library, problem = compile_kernels(
            machine.compiler.command, machine.compiler.version, cpu, cache_folder() / "kernels"
        )
        said = "norms, attention and activation in kernels compiled for this CPU"
        return Kernels(library), (f"{said}; {problem}" if problem else said,)
    except KernelsUnavailableError as error:
        return None, (f"no compiled kernels: {error}",)


def _precision(
    asked: str, device: torch.device, machine: Machine, block: BlockShape | None, kernels: Kernels | None
) -> tuple[str, str]:
    if asked == "int8":
        _require_int8(device, machine)
    if asked != "auto":
        if asked == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise SettingsError("runtime.precision = 'bf16' is not to be had on this GPU", "use fp32")
        return asked, f"{asked}: asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return "bf16", "bf16: the GPU has it"
        return "fp32", "fp32: the GPU has no bf16"
    if device.type == "mps":
        return "fp32", "fp32: on mps"
    said = "fp32: no int8 and no bf16 instructions on this CPU"
    if block is not None and fast_int8(machine.instruction_sets):
        quantizer = None if kernels is None else kernels.int8
        measured = measured_on(machine, kernels)
        chosen, said = choose_int8(block, quantizer, measured, remembered_precisions())
        if chosen == "int8":
            return chosen, said
    if not any(name in machine.instruction_sets for name in BF16_SETS):
        return "fp32", said
    fp32, bf16 = _product_seconds(torch.float32), _product_seconds(torch.bfloat16)
    ratio = f"a bf16 product took {bf16 / fp32:.2f} of the fp32 one's time"
    return ("bf16", f"bf16: {ratio}") if bf16 < 0.8 * fp32 else ("fp32", f"fp32: {ratio}")


def measured_on(machine: Machine, kernels: Kernels | None) -> str:
    """What a measurement holds for: another CPU, program or number of threads has one of its own."""
    return "; ".join(
        (
            machine.cpu_model,
            " ".join(machine.instruction_sets),
            f"torch {torch.__version__}, cpulm {__version__}",
            f"{torch.get_num_threads()} threads",
            "torch alone" if kernels is None else kernels.name,
        )
    )


def _require_int8(device: torch.device, machine: Machine) -> None:
    if device.type != "cpu":
        raise SettingsError(
            f"runtime.precision = 'int8' is for CPUs, and the device is {device.type}",
            "use bf16, or --device cpu",
        )
    if not fast_int8(machine.instruction_sets):
        raise SettingsError(
            "runtime.precision = 'int8' needs a CPU with int8 products (AVX512-VNNI, AVX-VNNI, AMX-INT8 or "
            "NEON-i8mm), and this one has none",
            "leave runtime.precision at auto",
        )


def _product_seconds(dtype: torch.dtype, side: int = 1024, seconds: float = 0.2) -> float:
    """The fastest of the matrix products that fit into ``seconds``."""
    matrix = torch.randn(side, side, dtype=dtype)
    return best_seconds(lambda: matrix @ matrix, torch.device("cpu"), seconds)
