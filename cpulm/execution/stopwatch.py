"""The fastest of several calls, timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch


def best_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The fastest call of those that fit into ``seconds``, at least two after one that warms up."""
    work()
    best, taken, end = math.inf, 0, time.perf_counter() + seconds
    while taken < 2 or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        best, taken = min(best, time.perf_counter() - began), taken + 1
    return best
