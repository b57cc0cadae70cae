"""How a run uses the machine: device, threads, precision, compilation, and why each was chosen."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cpulm import __version__
from cpulm.cachedir import cache_folder
from cpulm.engine.allocator import keep_freed_memory
from cpulm.engine.precision import BlockShape, choose_int8, fast_int8
from cpulm.engine.remembered import remembered_compiling, remembered_precisions, remembered_threads
from cpulm.engine.sysinfo import BF16_SETS, Machine, choose
from cpulm.engine.threads import choose_threads, numbers_to_try
from cpulm.errors import SettingsError
from cpulm.model.quantized import TorchQuantizer
from cpulm.model.transformer import Transformer
from cpulm.native.int8 import Int8Kernels
from cpulm.native.kernels import Kernels
from cpulm.native.library import KernelsUnavailableError, compiled
from cpulm.settings import RuntimeSettings, Settings

COMPILE_PAYS_AFTER_SECONDS = 1200.0
"""Where nothing was measured yet. Without the compiled kernels a cold compilation took 22 to 48 s at 10.7 M
parameters (2 cores, AVX-512, torch 2.13) and made a step a quarter faster, so a run has to be several times
longer than that before the gain is sure."""

SURE_GAIN = 2.0
"""How many times what compiling takes it has to save: the times of two days differ."""


@dataclass(frozen=True)
class CompileTimes:
    """What compiling one step cost on this machine, and what it gained; None where it was not measured.

    Attributes:
        cold: seconds with nothing in torch's cache.
        warm: seconds with all of it there.
        ratio: time of a compiled forward and backward pass over that of an eager one.
    """

    cold: float | None = None
    warm: float | None = None
    ratio: float | None = None

    @classmethod
    def remembered(cls, key: str) -> CompileTimes:
        """What was measured under ``key``."""
        numbers = remembered_compiling()
        return cls(*(numbers.find(f"{name}; {key}") for name in ("cold", "warm", "ratio")))

    def keep(self, key: str) -> None:
        """Remember what is known under ``key``."""
        for name in ("cold", "warm", "ratio"):
            value: float | None = getattr(self, name)
            if value is not None:
                remembered_compiling().keep(f"{name}; {key}", value)

    def decide(self, planned_seconds: float | None) -> tuple[bool, str]:
        """Whether a run of so many seconds gains by it, and why."""
        cost = self.cold if self.warm is None else self.warm
        if planned_seconds is None or cost is None or self.ratio is None:
            if planned_seconds is None or planned_seconds < COMPILE_PAYS_AFTER_SECONDS:
                return False, "the run is too short for compiling to pay"
            return True, "the run is long enough for it to pay"
        if self.ratio >= 1:
            return (
                False,
                f"as measured here earlier a compiled pass takes {self.ratio:.2f} of the eager one's time",
            )
        gain = planned_seconds * (1 - self.ratio)
        said = (
            f"as measured here earlier compiling takes {cost:.0f} s and would save {gain:.0f} s of this run"
        )
        return gain >= SURE_GAIN * cost, said


@dataclass(frozen=True)
class CompileTrial:
    """What is still to be measured of a step that is to be compiled.

    Attributes:
        key: under what its times are remembered.
        must_pay: whether the step stays eager where a compiled one is no faster.
    """

    key: str
    must_pay: bool


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


def decide_compile(
    runtime: Runtime, asked: str, machine: Machine, planned_seconds: float | None, key: str | None = None
) -> Runtime:
    """Decide whether the step is compiled.

    Args:
        asked: ``auto``, ``on`` or ``off``.
        planned_seconds: how long the run will take uncompiled, as far as known.
        key: of the step, see :func:`compile_key`; None where its times are neither used nor measured.

    Raises:
        SettingsError: where ``on`` is asked and no C++ compiler is found.
    """
    if asked == "off":
        return runtime.noting("eager: asked for")
    if runtime.device.type == "cpu" and machine.compiler is None:
        if asked == "on":
            raise SettingsError(
                f"runtime.compile = 'on', and there is {machine.compiler_problem}",
                "install g++ or clang++, or leave runtime.compile at auto",
            )
        return runtime.noting(f"eager: {machine.compiler_problem}")
    if machine.compiler is not None:
        # Inductor asks for g++ (clang++ on macOS) unless told otherwise, whatever else is installed.
        os.environ.setdefault("CXX", machine.compiler.command)
    # By itself torch keeps what it compiled in the folder for temporary files, which a restart empties.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    if asked == "on":
        trial = None if key is None else CompileTrial(key, must_pay=False)
        return runtime.noting("compiled: asked for", compiled=True, trial=trial)
    if runtime.device.type == "mps":
        return runtime.noting("eager: torch.compile does not pay on mps")
    if runtime.precision == "int8":
        return runtime.noting("eager: torch.compile has nothing to gain from int8 products")
    if runtime.precision == "fp32" and runtime.kernels is not None:
        # A step of `small`: 0.87 s with the kernels, 1.10 s compiled (2 cores with AVX-512, torch 2.13).
        return runtime.noting("eager: the kernels for this CPU are faster than torch.compile")
    times = CompileTimes() if key is None else CompileTimes.remembered(key)
    pays, why = times.decide(planned_seconds)
    if not pays:
        return runtime.noting(f"eager: {why}")
    trial = None if key is None else CompileTrial(key, must_pay=True)
    return runtime.noting(f"compiled: {why}", compiled=True, trial=trial)


def compile_key(settings: Settings, vocab_size: int, runtime: Runtime, machine: Machine) -> str:
    """Under what the times of compiling this step are remembered."""
    model, rows = settings.model, settings.train.micro_batch_size
    step = f"{model!r}, {vocab_size}, {rows}, {settings.train.document_mask}, {runtime.precision}"
    digest = hashlib.blake2b(step.encode(), digest_size=8).hexdigest()
    return f"{digest}; {runtime.device_name}; {measured_on(machine, runtime.kernels)}"


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
        library = compiled(
            machine.compiler.command, machine.compiler.version, cpu, cache_folder() / "kernels"
        )
        return Kernels(library), ("norms, attention and activation in kernels compiled for this CPU",)
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
    return _fastest(lambda: matrix @ matrix, seconds)


def _fastest(work: Callable[[], object], seconds: float) -> float:
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
