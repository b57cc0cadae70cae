"""Measures a preset on this machine: FLOP/s, the parts of a step, memory, and the duration of the run.

It runs real updates of a temporary model on random tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from cpulm.data.loader import val_batch_count
from cpulm.errors import StoppedError
from cpulm.estimate.memory import arithmetic_of, memory_bytes
from cpulm.estimate.requirements import total_steps
from cpulm.estimate.validation_schedule import batches_computed, validation_schedule
from cpulm.events import Listener, Progress
from cpulm.execution.adaptive_threads import adaptive_threads
from cpulm.execution.compilation import compile_forward
from cpulm.execution.runtime import Runtime
from cpulm.execution.step_timing import time_update
from cpulm.execution.stopwatch import best_seconds
from cpulm.execution.update import StepPart, TrainingParts
from cpulm.interrupts import StopNow, StopRequest
from cpulm.model.counts import count, flops_per_token
from cpulm.settings import Settings
from cpulm.system.monitor import peak_bytes
from cpulm.training.build import build_random_parts

SIDES = (256, 512, 1024, 2048)
_FEWEST_STEPS = 3


@dataclass(frozen=True)
class Peak:
    """The machine's measured peak.

    ``gflops`` maps the side of square matrices to the rate of their product in fp32;
    ``memory_gb_per_second`` counts both the reads and the writes of a copy.
    """

    gflops: dict[int, float]
    memory_gb_per_second: float

    @property
    def best(self) -> float:
        return max(self.gflops.values())


@dataclass(frozen=True)
class Timing:
    """Seconds of the median update and of its parts."""

    step_seconds: float
    parts: dict[StepPart, float]
    steps_measured: int


@dataclass(frozen=True)
class Result:
    """The measurements of a preset on this machine.

    ``memory_bytes`` is the peak of the process, including these updates. ``validation_seconds`` is the time
    of one validation, ``horizon_seconds`` that of the whole run including validations; None if unknown.
    """

    preset: str
    params_total: int
    params_non_embedding: int
    tokens_per_step: int
    steps: int | None
    timing: Timing
    compiled: Timing | None
    compile_seconds: float | None
    flops_per_token: float
    memory_bytes: int
    memory_estimated_bytes: int
    train_tokens: int | None
    validation_seconds: float | None
    horizon_seconds: float | None
    runtime: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def fastest(self) -> Timing:
        """The compiled step if a run would be compiled, else the eager one."""
        return self.compiled if self.compiled is not None else self.timing

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.fastest.step_seconds

    @property
    def gflops(self) -> float:
        return self.flops_per_token * self.tokens_per_second / 1e9

    @property
    def epoch_seconds(self) -> float | None:
        return None if self.train_tokens is None else self.train_tokens / self.tokens_per_second


@dataclass(frozen=True)
class DataSizes:
    """Tokens of a data set; None if unknown."""

    vocab_size: int
    train_tokens: int | None = None
    val_tokens: int | None = None


def measure_peak(device: torch.device, emit: Listener, seconds: float = 0.25) -> Peak:
    """Measure matrix products and a copy; each rate is that of the fastest call within ``seconds``."""
    stage, total = "measuring the machine's peak", len(SIDES) + 1
    gflops = {}
    for done, side in enumerate(SIDES):
        emit(Progress(stage=stage, done=done, total=total, unit="products"))
        matrix = torch.randn(side, side, device=device)
        best = best_seconds(partial(torch.matmul, matrix, matrix), device, seconds)
        gflops[side] = 2 * side**3 / best / 1e9
    source = torch.randn(1 << 25, device=device)
    target = torch.empty_like(source)
    copy = best_seconds(lambda: target.copy_(source), device, seconds)
    emit(Progress(stage=stage, done=total, total=total, unit="products", finished=True))
    return Peak(gflops, 2 * source.numel() * source.element_size() / copy / 1e9)


def benchmark_step(
    settings: Settings,
    sizes: DataSizes,
    runtime: Runtime,
    decide: Callable[[int | None], Runtime],
    *,
    seconds: float,
    emit: Listener,
    stop: StopRequest,
) -> Result:
    """Run updates of a preset for about ``seconds``, at least three.

    Args:
        runtime: the runtime that a run would choose, eager.
        decide: returns the runtime that a run of a given number of updates would choose. If its step is
            compiled, the compiled step is measured as well.

    Raises:
        StoppedError: if a stop is requested.
    """
    parts = build_random_parts(settings, sizes.vocab_size, runtime)
    timing = _time_updates(parts, runtime, settings, seconds, emit, stop)
    memory = peak_bytes()
    counts = count(settings.model, sizes.vocab_size)
    batches = _val_batches(settings, sizes)
    validation = _validation_seconds(parts, runtime, settings, batches)
    steps = total_steps(settings.train, settings.tokens_per_step, sizes.train_tokens or 0) or None
    validations = _validation_count(settings, sizes, steps, batches) if steps else 0
    horizon = _horizon_seconds(steps, timing.step_seconds, validations, validation)
    runtime = decide(steps)
    compiled, compile_seconds = None, None
    if runtime.compiled:
        began = time.perf_counter()
        try:
            parts, runtime = compile_forward(parts, runtime, emit, stop)
        except StopNow:
            raise _stopped() from None
        compile_seconds = time.perf_counter() - began
        if runtime.compiled:
            compiled = _time_updates(parts, runtime, settings, seconds, emit, stop)
            horizon = _horizon_seconds(steps, compiled.step_seconds, validations, validation)
    return Result(
        preset=settings.preset or "none",
        params_total=counts.total,
        params_non_embedding=counts.non_embedding,
        tokens_per_step=settings.tokens_per_step,
        steps=steps,
        timing=timing,
        compiled=compiled,
        compile_seconds=compile_seconds,
        flops_per_token=flops_per_token(settings.model, sizes.vocab_size),
        memory_bytes=memory,
        memory_estimated_bytes=memory_bytes(settings, sizes.vocab_size, arithmetic_of(runtime)),
        train_tokens=sizes.train_tokens,
        validation_seconds=validation,
        horizon_seconds=horizon,
        runtime=runtime.facts(),
        notes=runtime.notes,
    )


def _time_updates(
    parts: TrainingParts,
    runtime: Runtime,
    settings: Settings,
    seconds: float,
    emit: Listener,
    should_stop: Callable[[], bool],
) -> Timing:
    """Warm up with one update, then run updates until ``seconds`` have passed."""
    stage = f"measuring {settings.preset or 'the step'}{', compiled' if runtime.compiled else ''}"
    taken: list[dict[StepPart, float]] = []
    end = None
    with adaptive_threads(parts, runtime) as threads:
        while len(taken) <= _FEWEST_STEPS or (end is not None and time.perf_counter() < end):
            if should_stop():
                raise _stopped()
            emit(Progress(stage=stage, done=len(taken), total=None, unit="steps"))
            taken.append(time_update(parts, runtime, settings.train, len(taken)))
            threads.update_done(sum(taken[-1].values()))
            if end is None:
                end = time.perf_counter() + seconds
    emit(Progress(stage=stage, done=len(taken), total=len(taken), unit="steps", finished=True))
    measured = sorted(taken[1:], key=lambda update: sum(update.values()))
    return Timing(
        step_seconds=statistics.median(sum(update.values()) for update in measured),
        parts=measured[len(measured) // 2],
        steps_measured=len(measured),
    )


def _stopped() -> StoppedError:
    return StoppedError("while measuring; nothing was written", "run the command again")


def _val_batches(settings: Settings, sizes: DataSizes) -> int | None:
    """Return the micro-batches of one validation.

    None if neither the length of the validation text nor a number of batches is known.
    """
    block, rows, limit = settings.model.block_size, settings.train.micro_batch_size, settings.eval.batches
    if sizes.val_tokens is None:
        return limit
    return val_batch_count(np.empty(sizes.val_tokens, dtype=bool), block, rows, limit)


def _validation_seconds(
    parts: TrainingParts, runtime: Runtime, settings: Settings, batches: int | None
) -> float | None:
    """Measure the seconds of one validation in fp32, as :func:`cpulm.evaluation.validation_loss.evaluate`."""
    if batches is None:
        return None
    parts.model.eval()
    x, y = (tensor.to(runtime.device) for tensor in parts.loader.batch(0))

    def evaluate() -> float:
        with torch.inference_mode():
            return float(parts.model(x, targets=y))

    seconds = best_seconds(evaluate, runtime.device, 0.0)
    parts.model.train()
    return batches_computed(settings, batches) * seconds


def _validation_count(settings: Settings, sizes: DataSizes, steps: int, batches: int | None) -> int:
    """Return the validations of a run of ``steps`` updates."""
    if sizes.train_tokens is None or batches is None:
        return -(-steps // settings.eval.every)
    return validation_schedule(settings, sizes.train_tokens, batches).count(steps)


def _horizon_seconds(
    steps: int | None, step_seconds: float, validations: int, validation_seconds: float | None
) -> float | None:
    if steps is None:
        return None
    return steps * step_seconds + validations * (validation_seconds or 0.0)
