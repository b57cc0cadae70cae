"""llama.cpp's quantization q4_k, which the package gguf reads but does not write.

Blocks of 256 weights in 144 bytes: 8 groups of 32, each with a scale and an offset in 6 bits, times a float16
scale of the block. A weight is scale x q - offset, with q from 0 to 15 (ggml-quants.c, block_q4_K).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 256
_GROUP = 32


def quantize_q4_k(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Quantize a matrix.

    Args:
        weight: [rows, columns], columns a multiple of 256.

    Returns:
        The blocks, [rows, columns / 256 * 144].
    """
    rows = len(weight)
    groups = weight.reshape(-1, BLOCK // _GROUP, _GROUP)
    lowest = np.minimum(groups.min(axis=2), 0.0)
    scales, scale_of_block = _in_6_bits((groups.max(axis=2) - lowest) / 15)
    offsets, offset_of_block = _in_6_bits(-lowest)
    step = (scale_of_block * scales)[:, :, None]
    shifted = groups + (offset_of_block * offsets)[:, :, None]
    quanta = np.rint(np.divide(shifted, step, out=np.zeros_like(shifted), where=step > 0))
    quanta = quanta.clip(0, 15).astype(np.uint8).reshape(-1, 4, 2, _GROUP)
    blocks = (
        scale_of_block.astype("<f2").view(np.uint8),
        offset_of_block.astype("<f2").view(np.uint8),
        _packed_scales(scales.astype(np.uint8), offsets.astype(np.uint8)),
        (quanta[:, :, 0] | quanta[:, :, 1] << 4).reshape(-1, BLOCK // 2),
    )
    return np.concatenate(blocks, axis=1).reshape(rows, -1)


def _in_6_bits(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The values [blocks, 8] as whole numbers up to 63, times a unit [blocks, 1] that float16 holds."""
    unit = (values.max(axis=1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    whole = np.rint(np.divide(values, unit, out=np.zeros_like(values), where=unit > 0))
    return whole.clip(0, 63), unit


def _packed_scales(scales: npt.NDArray[np.uint8], offsets: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The 6 bits of 8 scales and 8 offsets in 12 bytes: whole for the first four, split for the others."""
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = offsets[:, :4] | (offsets[:, 4:] >> 4) << 6
    third = (scales[:, 4:] & 15) | (offsets[:, 4:] & 15) << 4
    return np.concatenate((first, second, third), axis=1)
