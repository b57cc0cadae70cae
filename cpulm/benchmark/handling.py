"""What an exchange between processes costs the processor: rounding, restoring and copying all values."""

from __future__ import annotations

import torch

from cpulm.distributed.compression import BLOCK, Quantize, compress, restore
from cpulm.execution.stopwatch import best_seconds
from cpulm.settings.distributed_settings import Compression


def handling_seconds(
    values: int, kind: Compression, quantize: Quantize | None = None, seconds: float = 0.3
) -> float:
    """Measure the work of one process in one exchange of ``values`` float32 numbers.

    They are copied, rounded and restored twice, on the way to those that add them up and on the way back.

    Args:
        quantize: as in :func:`cpulm.distributed.compression.compress`.
        seconds: how long to measure.
    """
    numbers, device = torch.randn(values // BLOCK * BLOCK), torch.device("cpu")
    copied, content = torch.empty_like(numbers), compress(numbers, kind, quantize)

    def there() -> None:
        compress(copied.copy_(numbers), kind, quantize)

    def back() -> None:
        copied.copy_(restore(content, len(numbers), kind))

    return 2 * (best_seconds(there, device, seconds) + best_seconds(back, device, seconds))
