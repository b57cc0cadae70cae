"""Numbers in fewer bytes, for the way between processes, and what rounding lost sent along the next time.

Error feedback: Seide and others, "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
Distributed Training of Speech DNNs", 2014; Karimireddy and others, "Error Feedback Fixes SignSGD and other
Gradient Compression Schemes", 2019, https://arxiv.org/abs/1901.09847.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cpulm.settings.distributed_settings import Compression

BLOCK = 256
"""Values that share one scale: the scales take 1.6 % of the bytes in int8, 6 % in int2."""
_LEVELS = 127.0
_STEP = 0.996
"""The distance of the four levels of int2 relative to the root mean square of a block: it has the smallest
error for normally distributed values (Max, "Quantizing for Minimum Distortion", 1960)."""

Quantize = Callable[[Tensor], Any]
"""Rounds float32 [M, :data:`BLOCK`]: returns int8 ``values`` of that shape and their ``scale`` [M], the
largest magnitude of a row divided by 127. A compiled kernel takes a fifth of torch's time."""


def compressed_bytes(count: int, kind: Compression) -> int:
    """Return how many bytes ``count`` float32 values take."""
    if kind == "int8":
        return count + 4 * _blocks(count)
    if kind == "int2":
        return (BLOCK // 4 + 4) * _blocks(count)
    return count * (2 if kind == "bf16" else 4)


def compress(values: Tensor, kind: Compression, quantize: Quantize | None = None) -> Tensor:
    """Round float32 values [..., N] to fewer bytes.

    In bf16 a value that is not tiny is off by at most a 256th of itself; in int8 by at most a 254th of the
    largest value of its block of :data:`BLOCK`. In int2, which is for :class:`ErrorFeedback` or the like, a
    block becomes four levels, -1.5, -0.5, 0.5 and 1.5 times its scale. A block with a value that is not
    finite is not finite as a whole.

    Args:
        quantize: for int8; None: torch does it.

    Returns:
        uint8 [..., :func:`compressed_bytes`].
    """
    if kind == "none":
        return values.clone().view(torch.uint8)
    if kind == "bf16":
        return values.to(torch.bfloat16).view(torch.uint8)
    count, parts = values.size(-1), values.shape[:-1]
    rows = _padded(values).reshape(-1, BLOCK)
    if kind == "int2":
        return _in_two_bits(rows).view(*parts, compressed_bytes(count, kind))
    if quantize is None or not len(rows):
        scales = rows.abs().amax(1) / _LEVELS
        scaled = rows * torch.where(scales > 0, 1 / scales, 0).unsqueeze(1)
        rounded = scaled.nan_to_num_(0).round_().clamp_(-_LEVELS, _LEVELS).to(torch.int8)
    else:
        found = quantize(rows)
        rounded, scales = found.values, found.scale
    sent = rounded.view(*parts, _blocks(count) * BLOCK)[..., :count].view(torch.uint8)
    return torch.cat((sent, scales.view(*parts, _blocks(count)).view(torch.uint8)), -1)


def restore(content: Tensor, count: int, kind: Compression) -> Tensor:
    """Return the float32 values [..., count] that :func:`compress` rounded to ``content``.

    Raises:
        ValueError: if ``content`` has not the bytes of so many values.
    """
    if content.dtype != torch.uint8 or content.size(-1) != compressed_bytes(count, kind):
        raise ValueError(f"{content.size(-1)} bytes are not {count} values in {kind}")
    if kind == "none":
        return content.clone().view(torch.float32)
    if kind == "bf16":
        return content.clone().view(torch.bfloat16).float()
    if kind == "int2":
        rows = content.view(-1, BLOCK // 4 + 4)
        return _from_two_bits(rows).view(*content.shape[:-1], _blocks(count) * BLOCK)[..., :count]
    scales = content[..., count:].contiguous().clone().view(torch.float32)
    values = _padded(content[..., :count].view(torch.int8)).float()
    values.view(*scales.shape, BLOCK).mul_(scales.unsqueeze(-1))  # in place: a third of the time
    return values[..., :count]


class ErrorFeedback:
    """Compresses tensor after tensor of one shape; what rounding lost is added to the next one.

    The sum of what was sent differs from the sum of what was given by the rounding of the last one alone.

    Attributes:
        lost: float32 [N], what is still to be sent.
    """

    def __init__(self, count: int, kind: Compression) -> None:
        self.kind: Compression = kind
        self.lost = torch.zeros(count)

    def compress(self, values: Tensor) -> Tensor:
        """Return ``values`` and what was lost before, compressed; ``values``, float32 [N], is overwritten."""
        wanted = values.add_(self.lost)
        content = compress(wanted, self.kind)
        torch.sub(wanted, restore(content, wanted.numel(), self.kind), out=self.lost)
        return content


def _in_two_bits(rows: Tensor) -> Tensor:
    """Round float32 [M, :data:`BLOCK`] to uint8 [M, BLOCK / 4 + 4]: the levels of four values in a byte, and
    the scale, in which zeros do not count: most are padding."""
    squares = rows.square().sum(1, keepdim=True) / rows.count_nonzero(1).clamp_(min=1).unsqueeze(1)
    scales = squares.sqrt_().mul_(_STEP)
    scaled = rows * torch.where(scales > 0, 1 / scales, 0)
    levels = scaled.nan_to_num_(0).floor_().clamp_(-2, 1).add_(2).to(torch.uint8)
    first, second, third, fourth = levels.chunk(4, 1)
    packed = first | second << 2 | third << 4 | fourth << 6
    return torch.cat((packed, scales.view(torch.uint8)), 1)


def _from_two_bits(rows: Tensor) -> Tensor:
    """Return the float32 values [M, :data:`BLOCK`] that :func:`_in_two_bits` rounded to ``rows``."""
    packed, scales = rows[:, :-4], rows[:, -4:].clone().view(torch.float32)
    levels = torch.cat([packed >> shift & 3 for shift in (0, 2, 4, 6)], 1)
    return levels.float().sub_(1.5).mul_(scales)


def block_views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``flat`` with the shapes of ``tensors``, one after the other.

    Each begins a block, so that small numbers are not rounded by the scale of another tensor's.
    """
    parts = flat[: sum(map(whole_blocks, tensors))].split([whole_blocks(t) for t in tensors])
    return [part[: t.numel()].view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def whole_blocks(tensor: Tensor) -> int:
    """The number of values of ``tensor``, rounded up to whole blocks."""
    return _blocks(tensor.numel()) * BLOCK


def _padded(values: Tensor) -> Tensor:
    """Values [..., N] with zeros up to whole blocks."""
    missing = -values.size(-1) % BLOCK
    return torch.nn.functional.pad(values, (0, missing)) if missing else values


def _blocks(count: int) -> int:
    return -(-count // BLOCK)
