"""What this machine makes of a preset: its peak, the parts of a step, memory, and the time to the end.

Nothing is trained: real updates are taken on a throwaway model. Tokens are drawn at random where no data
is given, for a step takes the same time on any.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from cpulm.data.loader import Loader, val_batch_count
from cpulm.errors import StoppedError
from cpulm.estimate.memory import arithmetic, memory_bytes
from cpulm.estimate.requirements import total_steps
from cpulm.events import Listener, Progress
from cpulm.execution.compilation import Forward, ready_forward
from cpulm.execution.runtime import Runtime
from cpulm.execution.stopwatch import best_seconds
from cpulm.interrupts import StopNow, StopRequest
from cpulm.model.counts import count, flops_per_token
from cpulm.model.transformer import Transformer
from cpulm.optim.build_optimizers import build_optimizers
from cpulm.optim.clip import clip_gradients
from cpulm.settings import Settings
from cpulm.system.monitor import peak_bytes

SIDES = (256, 512, 1024, 2048)
PARTS = ("data", "forward", "backward", "optimizer")
_FEWEST_STEPS = 3


@dataclass(frozen=True)
class Peak:
    """What the machine does at most.

    ``gflops`` is of square matrix products in fp32, by their side; ``memory_gb_per_second`` is of a copy,
    read and write counted.
    """

    gflops: dict[int, float]
    memory_gb_per_second: float

    @property
    def best(self) -> float:
        return max(self.gflops.values())


@dataclass(frozen=True)
class Timing:
    """Seconds of one update, the median of those measured, and of its parts in that update."""

    step_seconds: float
    parts: dict[str, float]
    steps_measured: int


@dataclass(frozen=True)
class Result:
    """A preset on this machine.

    ``memory_bytes`` is the process's peak up to and with these updates. ``validation_seconds`` is of one
    validation by the settings, ``horizon_seconds`` of the whole run by its horizon, validations included;
    None where the settings name none or it cannot be known.
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
        """Compiled, where a run would be."""
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
class Sizes:
    """Tokens of a data set; None for what is not known."""

    vocab_size: int
    train_tokens: int | None = None
    val_tokens: int | None = None


def measure_peak(device: torch.device, emit: Listener, seconds: float = 0.25) -> Peak:
    """Matrix products and a copy, each the best of what fits into ``seconds``."""
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


def measure(
    settings: Settings,
    sizes: Sizes,
    runtime: Runtime,
    decide: Callable[[int | None], Runtime],
    *,
    seconds: float,
    emit: Listener,
    stop: StopRequest,
) -> Result:
    """Take updates of a preset for about ``seconds``, and at least three.

    Args:
        runtime: as a run would choose it, eager.
        decide: the runtime that a run of so many updates would take, which may be a compiled one; then the
            compiled step is measured as well.

    Raises:
        StoppedError: where a stop is asked for.
    """
    model, optimizers, loader = _throwaway(settings, sizes.vocab_size, runtime)
    timing = _timed(model, model, optimizers, loader, runtime, settings, seconds, emit, stop)
    memory = peak_bytes()
    counts = count(settings.model, sizes.vocab_size)
    validation = _validation_seconds(model, loader, runtime, settings, sizes)
    steps = total_steps(settings.train, settings.tokens_per_step, sizes.train_tokens or 0) or None
    horizon = _horizon_seconds(settings, steps, timing.step_seconds, validation)
    runtime = decide(steps)
    compiled, compile_seconds = None, None
    if runtime.compiled:
        began = time.perf_counter()
        try:
            forward, runtime = ready_forward(model, loader, runtime, emit, stop)
        except StopNow:
            raise _stopped() from None
        compile_seconds = time.perf_counter() - began
        if runtime.compiled:
            compiled = _timed(model, forward, optimizers, loader, runtime, settings, seconds, emit, stop)
            horizon = _horizon_seconds(settings, steps, compiled.step_seconds, validation)
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
        memory_estimated_bytes=memory_bytes(settings, sizes.vocab_size, arithmetic(runtime)),
        train_tokens=sizes.train_tokens,
        validation_seconds=validation,
        horizon_seconds=horizon,
        runtime=runtime.facts(),
        notes=runtime.notes,
    )


def _throwaway(
    settings: Settings, vocab_size: int, runtime: Runtime
) -> tuple[Transformer, list[torch.optim.Optimizer], Loader]:
    train, block = settings.train, settings.model.block_size
    rows = 4 * train.micro_batch_size
    tokens = np.random.default_rng(train.seed).integers(0, vocab_size, rows * block + 1).astype(np.uint32)
    model = Transformer(settings.model, vocab_size)
    model.init_weights(train.seed)
    model.to(runtime.device)
    runtime.equip(model)
    model.mask_documents(vocab_size - 1 if train.document_mask else None)  # any token: they are random
    optimizers = build_optimizers(model, train, runtime.int8_kernels)
    return model, optimizers, Loader(tokens, block, train.micro_batch_size, train.seed)


def _timed(
    model: Transformer,
    forward: Forward,
    optimizers: list[torch.optim.Optimizer],
    loader: Loader,
    runtime: Runtime,
    settings: Settings,
    seconds: float,
    emit: Listener,
    should_stop: Callable[[], bool],
) -> Timing:
    """Warm up with one update, then measure until the time is over.

    Of accumulated micro-batches one is measured and counted as often as there are. The first pass is not
    measured and leaves its gradients to the second, as in a run: they count in the peak of memory.
    """
    stage = f"measuring {settings.preset or 'the step'}{', compiled' if forward is not model else ''}"
    taken: list[dict[str, float]] = []
    end = None
    if settings.train.grad_accum_steps > 1:
        _passes(forward, loader, runtime, 0)
    while len(taken) <= _FEWEST_STEPS or (end is not None and time.perf_counter() < end):
        if should_stop():
            raise _stopped()
        emit(Progress(stage=stage, done=len(taken), total=None, unit="steps"))
        taken.append(_one_update(model, forward, optimizers, loader, runtime, settings, len(taken)))
        if end is None:
            end = time.perf_counter() + seconds
    emit(Progress(stage=stage, done=len(taken), total=len(taken), unit="steps", finished=True))
    measured = sorted(taken[1:], key=lambda parts: sum(parts.values()))
    return Timing(
        step_seconds=statistics.median(sum(parts.values()) for parts in measured),
        parts=measured[len(measured) // 2],
        steps_measured=len(measured),
    )


def _stopped() -> StoppedError:
    return StoppedError("while measuring; nothing was written", "run the command again")


def _passes(forward: Forward, loader: Loader, runtime: Runtime, index: int) -> None:
    """Forward and backward over one micro-batch."""
    x, y = (part.to(runtime.device) for part in loader.batch(index))
    with runtime.autocast():
        loss = forward(x, targets=y)
    loss.backward()


def _one_update(
    model: Transformer,
    forward: Forward,
    optimizers: list[torch.optim.Optimizer],
    loader: Loader,
    runtime: Runtime,
    settings: Settings,
    index: int,
) -> dict[str, float]:
    times = [time.perf_counter()]

    def lap() -> None:
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    x, y = (part.to(runtime.device) for part in loader.batch(index))
    lap()
    with runtime.autocast():
        loss = forward(x, targets=y)
    lap()
    loss.backward()
    lap()
    clip_gradients(model.parameters(), settings.train.grad_clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    lap()
    parts = dict(zip(PARTS, (after - before for before, after in itertools.pairwise(times)), strict=True))
    micro = settings.train.grad_accum_steps
    return {name: value * (1 if name == "optimizer" else micro) for name, value in parts.items()}


def _validation_seconds(
    model: Transformer, loader: Loader, runtime: Runtime, settings: Settings, sizes: Sizes
) -> float | None:
    """Of one validation; None where neither the validation text nor a number of batches is known."""
    block, rows, limit = settings.model.block_size, settings.train.micro_batch_size, settings.eval.batches
    if sizes.val_tokens is None:
        batches = limit
    else:
        batches = val_batch_count(np.empty(sizes.val_tokens, dtype=bool), block, rows, limit)
    if batches is None:
        return None
    model.eval()
    x, y = (part.to(runtime.device) for part in loader.batch(0))

    def evaluate() -> float:
        with torch.inference_mode(), runtime.autocast():
            return float(model(x, targets=y))

    seconds = best_seconds(evaluate, runtime.device, 0.0)
    model.train()
    return batches * seconds


def _horizon_seconds(
    settings: Settings, steps: int | None, step_seconds: float, validation_seconds: float | None
) -> float | None:
    if steps is None:
        return None
    validations = -(-steps // settings.eval.every)
    return steps * step_seconds + validations * (validation_seconds or 0.0)
