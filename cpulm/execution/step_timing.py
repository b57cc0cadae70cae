"""How long one update takes here, and what the machine does at most, measured."""

from __future__ import annotations

import math
import time
from functools import lru_cache, partial

import torch

from cpulm.data.loader import Loader
from cpulm.execution.runtime import Runtime
from cpulm.execution.stopwatch import best_seconds
from cpulm.model.transformer import Transformer
from cpulm.optim.clip import clip_gradients
from cpulm.settings import Settings

_PEAK_SIDES, _PEAK_SECONDS = (512, 1024), 0.1


def measure_step(
    model: Transformer,
    optimizers: list[torch.optim.Optimizer],
    loader: Loader,
    runtime: Runtime,
    settings: Settings,
) -> float:
    """Seconds of one update, measured on real steps of ``model``, whose weights this changes.

    The first step warms up caches and allocators; the faster of the two that follow counts.
    """
    count_micro = settings.train.grad_accum_steps
    best = math.inf
    for attempt in range(3):
        began = time.perf_counter()
        x, y = (part.to(runtime.device) for part in loader.batch(attempt))
        with runtime.autocast():
            loss = model(x, targets=y)
        loss.backward()
        float(loss.detach())
        micro = time.perf_counter() - began
        clip_gradients(model.parameters(), settings.train.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        rest = time.perf_counter() - began - micro
        if attempt:
            best = min(best, micro * count_micro + rest)
    return best


@lru_cache
def process_fp32_peak(device: torch.device, threads: int) -> float:
    """As :func:`fp32_peak` with ``threads``, measured once in a process."""
    torch.set_num_threads(threads)
    return fp32_peak(device)


def fp32_peak(device: torch.device) -> float:
    """FLOP per second of a matrix product in fp32, the fastest of two sizes; a quarter of a second."""
    rates = []
    for side in _PEAK_SIDES:
        side *= 1 if device.type == "cpu" else 4
        matrix = torch.ones(side, side, device=device)  # draws nothing: the generator is the run's
        seconds = best_seconds(partial(torch.matmul, matrix, matrix), device, _PEAK_SECONDS)
        rates.append(2 * side**3 / seconds)
    return max(rates)
