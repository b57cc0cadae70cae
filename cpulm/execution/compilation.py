"""Decides whether a run's step is compiled by torch, compiles it, and falls back to eager if that fails."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from cpulm.cache_dir import cache_folder
from cpulm.errors import SettingsError
from cpulm.events import Listener, Progress
from cpulm.execution.rng import random_states, restore_random_states
from cpulm.execution.runtime import Runtime
from cpulm.execution.update import StepTimer, TrainingParts, accumulate_gradients
from cpulm.interrupts import StopRequest
from cpulm.system.machine import Machine

COMPILE_PAYS_AFTER_SECONDS = 1200.0
"""The shortest run that is compiled. Without the compiled kernels a cold compilation took 22 to 48 s at 10.7
M parameters (2 cores, AVX-512, torch 2.13) and made a step a quarter faster, so a run has to be several times
longer than that before the gain is certain."""


def decide_compile(
    runtime: Runtime,
    requested: str,
    machine: Machine,
    nominal_seconds: float | None,
    reason: str = "requested",
) -> Runtime:
    """Decide whether the step is compiled.

    Args:
        requested: ``auto``, ``on`` or ``off``.
        nominal_seconds: the run's duration by :func:`cpulm.estimate.requirements.nominal_seconds`, because
            with a measured one the decision would depend on how busy the machine is. None: unknown.
        reason: what the note says of ``on`` and ``off``.

    Raises:
        SettingsError: if ``on`` is requested and no C++ compiler is found.
    """
    if requested == "off":
        return runtime.with_note(f"eager: {reason}")
    if runtime.device.type == "cpu" and machine.no_torch_compile:
        if requested == "on":
            raise SettingsError(
                f"runtime.compile = 'on' needs a C++ compiler: {machine.no_torch_compile}",
                "install g++ or clang++ with OpenMP's and Python's headers, or leave runtime.compile at auto",
            )
        return runtime.with_note(f"eager: {machine.no_torch_compile}")
    if machine.compiler is not None:
        # Without CXX, Inductor calls g++ (clang++ on macOS), even if only another compiler is installed.
        os.environ.setdefault("CXX", machine.compiler.command)
    # By default torch keeps what it compiled in the folder for temporary files, which a restart empties.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    if requested == "on":
        return runtime.with_note(f"compiled: {reason}", compiled=True)
    if runtime.device.type == "mps":
        return runtime.with_note("eager: torch.compile does not pay on mps")
    if runtime.precision == "int8":
        return runtime.with_note("eager: torch.compile does not make int8 products faster")
    if runtime.precision == "fp32" and runtime.kernels is not None:
        # A step of `small`: 0.87 s with the kernels, 1.10 s compiled (2 cores with AVX-512, torch 2.13).
        return runtime.with_note("eager: the kernels for this CPU are faster than torch.compile")
    if nominal_seconds is None or nominal_seconds < COMPILE_PAYS_AFTER_SECONDS:
        return runtime.with_note("eager: the run is too short for compiling to pay")
    return runtime.with_note("compiled: the run is long enough for compiling to pay", compiled=True)


def compile_forward(
    parts: TrainingParts, runtime: Runtime, show: Listener, stop: StopRequest
) -> tuple[TrainingParts, Runtime]:
    """Compile the forward function of ``parts`` if ``runtime`` says so, and use it if that works.

    One forward and one backward pass trigger the compilation; weights and random state do not change. If the
    compiler fails (a folder name that it cannot read, a missing header), the run continues eagerly.

    Returns:
        The parts to train with, and the runtime that is really used.

    Raises:
        StopNow: if a stop is requested meanwhile. It interrupts, because a compiler cannot check for a stop.
    """
    if not runtime.compiled:
        return parts, runtime
    compiled = replace(parts, forward=torch.compile(parts.forward))
    alone = replace(compiled, exchange=None)
    random_state = random_states(runtime.device)
    show(Progress(stage="compiling", done=0, total=None, unit=""))
    try:
        with stop.interruptible():
            accumulate_gradients(alone, (0,), runtime, StepTimer(runtime.device))
    except Exception as error:  # torch wraps the errors of compilers and linkers in many classes
        torch._dynamo.reset()
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return parts, runtime.with_note(
            f"eager after all, compiling failed: {why.strip()[:200]}", compiled=False
        )
    finally:
        parts.zero_grad()
        restore_random_states(random_state)
        show(Progress(stage="compiling", done=1, total=1, unit="", finished=True))
    return compiled, runtime
