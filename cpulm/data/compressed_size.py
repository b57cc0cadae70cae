"""How well a text compresses: a cheap measure of how hard it is to predict."""

from __future__ import annotations

import bz2
import math

import numpy as np

from cpulm.data.loader import Tokens
from cpulm.data.tokenfile import TokenFolder

_SAMPLE_BYTES = 32_000
_MOST_SAMPLES = 16
_SHORT_EXPONENT = 0.12
"""A shorter sample compresses less: by so much of a power of its length, measured on five texts."""


def compressed_bits(tokens: TokenFolder) -> float:
    """Bits for each byte of a text in samples of 32 kB, compressed by bzip2: as many of each split.

    On Wikipedia, Shakespeare's plays and Python it is nearly in the same proportion as the losses of models.
    """
    samples = [sample for split in (tokens.train, tokens.val) for sample in _samples(tokens, split)]
    length = sum(map(len, samples))
    if not length:
        return 0.0
    bits = 8.0 * sum(len(bz2.compress(sample)) for sample in samples) / length
    return bits * math.pow(min(1.0, length / len(samples) / _SAMPLE_BYTES), _SHORT_EXPONENT)


def _samples(tokens: TokenFolder, split: Tokens) -> list[bytes]:
    """Parts of a split, spread evenly over it, as text."""
    count = max(2, round(_SAMPLE_BYTES / tokens.bytes_per_token))
    starts = np.linspace(0, max(0, len(split) - count), min(_MOST_SAMPLES, max(1, len(split) // count)))
    decode = tokens.tokenizer.decode
    return [decode(split[int(start) : int(start) + count].tolist()).encode() for start in starts]
