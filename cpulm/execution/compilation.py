"""The step compiled before the first update, or a plain step where that fails or does not pay."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from cpulm.cache_dir import cache_folder
from cpulm.data.loader import Loader
from cpulm.errors import SettingsError
from cpulm.events import Listener, Progress
from cpulm.execution.compile_times import CompileTimes, CompileTrial
from cpulm.execution.rng import random_states, restore_random_states
from cpulm.execution.runtime import Runtime, measured_on
from cpulm.interrupts import StopRequest
from cpulm.model.transformer import Transformer
from cpulm.settings import Settings
from cpulm.system.machine import Machine

Forward = Callable[..., Tensor]

FEWEST_ROUNDS, MEASURING_SECONDS = 3, 1.5
"""Of passes both ways, in turns, whose fastest are compared."""


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


def ready_forward(
    model: Transformer, loader: Loader, runtime: Runtime, show: Listener, stop: StopRequest
) -> tuple[Forward, Runtime]:
    """What computes the training loss, compiled where ``runtime`` says so and it works.

    A few forward and backward passes are run to compile them and, where ``runtime`` has a trial, to measure
    what that gained; gradients and random state are left as they were. A compiler that fails (a folder name
    it cannot read, a missing header) costs the speed, not the run.

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
            times = _compile(model, forward, loader, runtime)
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
    if runtime.trial is None or times.ratio is None:
        return forward, runtime
    times.keep(runtime.trial.key)
    if runtime.trial.must_pay and times.ratio >= 1:
        said = f"eager after all: a compiled pass takes {times.ratio:.2f} of its time"
        return model, runtime.noting(said, compiled=False)
    return forward, runtime


def _compile(model: Transformer, forward: Forward, loader: Loader, runtime: Runtime) -> CompileTimes:
    """Have ``forward`` compiled, and say what that took and gained; no ratio where there is no trial."""
    x, y = (part.to(runtime.device) for part in loader.batch(0))

    def seconds_of(function: Forward) -> float:
        began = time.perf_counter()
        with runtime.autocast():
            loss = function(x, targets=y)
        loss.backward()
        float(loss.detach())  # waits for a device that works on its own
        return time.perf_counter() - began

    if runtime.trial is None:
        seconds_of(forward)
        return CompileTimes()
    seconds_of(model)  # what it does at its first call is not the compiler's time
    hits, misses = _cache_counts()
    first = seconds_of(forward)
    found, missed = (now - before for now, before in zip(_cache_counts(), (hits, misses), strict=True))
    eager = compiled = math.inf
    began, rounds = time.perf_counter(), 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() - began < MEASURING_SECONDS:
        eager, compiled = min(eager, seconds_of(model)), min(compiled, seconds_of(forward))
        rounds += 1
    spent = max(first - compiled, 1e-3)
    if found and not missed:
        return CompileTimes(warm=spent, ratio=compiled / eager)
    return CompileTimes(cold=spent, ratio=compiled / eager)


def _cache_counts() -> tuple[int, int]:
    """Compiled graphs that torch's cache had, and had not, in this process."""
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    whole = counters["aot_autograd"]
    return (
        inductor["fxgraph_cache_hit"] + whole["autograd_cache_hit"],
        inductor["fxgraph_cache_miss"],
    )
