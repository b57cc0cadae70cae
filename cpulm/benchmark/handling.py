"""What an exchange between processes costs the processor: rounding, restoring and copying all values."""

from __future__ import annotations

from functools import partial

import torch

from cpulm.distributed.compression import Compression, compress, restore
from cpulm.execution.stopwatch import best_seconds


def handling_seconds(values: int, kind: Compression, seconds: float = 0.3) -> float:
    """Measure the work of one process in one exchange of ``values`` float32 numbers.

    They are rounded and restored twice, on the way to those that add them up and on the way back.

    Args:
        seconds: how long to measure.
    """
    numbers, device = torch.randn(values), torch.device("cpu")
    content = compress(numbers, kind)
    there = best_seconds(partial(compress, numbers, kind), device, seconds)
    back = best_seconds(partial(restore, content, values, kind), device, seconds)
    return 2 * (there + back)
