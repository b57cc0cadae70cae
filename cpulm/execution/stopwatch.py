"""Times the fastest of several calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has finished all queued work; the CPU has no queue."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def best_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the fastest time of the calls that fit into ``seconds``: at least two, after a warm-up."""
    work()
    best, taken, end = math.inf, 0, time.perf_counter() + seconds
    while taken < 2 or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        synchronize(device)
        best, taken = min(best, time.perf_counter() - began), taken + 1
    return best
