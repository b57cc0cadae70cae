"""How long one update takes here, measured."""

from __future__ import annotations

import math
import time

import torch

from cpulm.data.loader import Loader
from cpulm.engine.runtime import Runtime
from cpulm.model.transformer import Transformer
from cpulm.settings import Settings


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
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        rest = time.perf_counter() - began - micro
        if attempt:
            best = min(best, micro * count_micro + rest)
    return best
