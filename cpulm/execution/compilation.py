"""The step compiled before the first update, or a plain step where that fails or does not pay."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from cpulm.cache_dir import cache_folder
from cpulm.data.loader import Loader
from cpulm.errors import SettingsError
from cpulm.events import Listener, Progress
from cpulm.execution.rng import random_states, restore_random_states
from cpulm.execution.runtime import Runtime
from cpulm.interrupts import StopRequest
from cpulm.model.transformer import Transformer
from cpulm.system.machine import Machine

Forward = Callable[..., Tensor]

COMPILE_PAYS_AFTER_SECONDS = 1200.0
"""Without the compiled kernels a cold compilation took 22 to 48 s at 10.7 M parameters (2 cores, AVX-512,
torch 2.13) and made a step a quarter faster, so a run has to be several times longer than that before the
gain is sure."""


def decide_compile(runtime: Runtime, asked: str, machine: Machine, nominal_seconds: float | None) -> Runtime:
    """Decide whether the step is compiled.

    Args:
        asked: ``auto``, ``on`` or ``off``.
        nominal_seconds: how long the run will take, see
            :func:`cpulm.estimate.requirements.nominal_seconds`: a measured time would decide differently on
            a busy machine. None: unknown.

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
        return runtime.noting("compiled: asked for", compiled=True)
    if runtime.device.type == "mps":
        return runtime.noting("eager: torch.compile does not pay on mps")
    if runtime.precision == "int8":
        return runtime.noting("eager: torch.compile has nothing to gain from int8 products")
    if runtime.precision == "fp32" and runtime.kernels is not None:
        # A step of `small`: 0.87 s with the kernels, 1.10 s compiled (2 cores with AVX-512, torch 2.13).
        return runtime.noting("eager: the kernels for this CPU are faster than torch.compile")
    if nominal_seconds is None or nominal_seconds < COMPILE_PAYS_AFTER_SECONDS:
        return runtime.noting("eager: the run is too short for compiling to pay")
    return runtime.noting("compiled: the run is long enough for it to pay", compiled=True)


def ready_forward(
    model: Transformer, loader: Loader, runtime: Runtime, show: Listener, stop: StopRequest
) -> tuple[Forward, Runtime]:
    """What computes the training loss, compiled where ``runtime`` says so and it works.

    One forward and one backward pass are run to compile them; gradients and random state are left as they
    were. A compiler that fails (a folder name it cannot read, a missing header) costs the speed, not the run.

    Raises:
        StopNow: where a stop is asked for meanwhile: a compiler does not look at requests.

    Returns:
        A function of (idx, targets=...), and the runtime with what came true.
    """
    if not runtime.compiled:
        return model, runtime
    forward: Forward = torch.compile(model)
    random_state = random_states(runtime.device)
    show(Progress(stage="compiling", done=0, total=None, unit=""))
    try:
        with stop.interruptible():
            _compile(forward, loader, runtime)
    except Exception as error:  # torch wraps what compilers and linkers say in many classes
        torch._dynamo.reset()
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return model, runtime.noting(
            f"eager after all, compiling failed: {why.strip()[:200]}", compiled=False
        )
    finally:
        model.zero_grad(set_to_none=True)
        restore_random_states(random_state)
        show(Progress(stage="compiling", done=1, total=1, unit="", finished=True))
    return forward, runtime


def _compile(forward: Forward, loader: Loader, runtime: Runtime) -> None:
    """Have ``forward`` and its backward pass compiled."""
    x, y = (part.to(runtime.device) for part in loader.batch(0))
    with runtime.autocast():
        loss = forward(x, targets=y)
    loss.backward()
    float(loss.detach())  # waits for a device that works on its own
