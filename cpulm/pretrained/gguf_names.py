"""What writing and reading GGUF files share: names of tensors and patterns, and the order of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import numpy as np

from cpulm.data.splitting import SplittingPattern
from cpulm.errors import SettingsError
from cpulm.pretrained.architecture import Architecture
from cpulm.pretrained.named_weights import Array
from cpulm.settings import ModelSettings

PRE_TOKENIZERS: Mapping[SplittingPattern, str] = {"gpt2": "gpt-2", "qwen2": "qwen2", "llama3": "llama-bpe"}
"""llama.cpp's names of the splitting patterns."""

WORD_BEGINS = "\N{LOWER ONE EIGHTH BLOCK}"
"""What llama.cpp's ``t5`` reads a space as."""
NO_TEXT = b"\xff"
"""Before the end-of-text token of an ``rwkv`` vocabulary: a byte that no text holds, so that none is read as
that token."""


class TokenType(IntEnum):
    """The types of tokens in a GGUF file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def require_gguf() -> Any:
    """Return the package gguf.

    Raises:
        SettingsError: if it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise SettingsError(
            "GGUF files need the package gguf, which is not installed", "pip install gguf"
        ) from error
    return gguf


def gguf_name(architecture: Architecture, n_layer: int) -> Callable[[str], str]:
    """Return a function from the name of a weight in transformers to that in GGUF files."""
    gguf = require_gguf()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], n_layer)
    return lambda name: str(names.get_name(name, try_suffixes=(".weight", ".bias")))


def rotated_heads(architecture: Architecture, name: str, settings: ModelSettings) -> int:
    """The heads of a projection whose rows llama.cpp orders otherwise than transformers; 0 for the others.

    It rotates pairs of neighbours in a Llama, and pairs of the two halves in a Qwen3.
    """
    if architecture != "llama":
        return 0
    return settings.n_head * (".q_proj." in name) + settings.kv_heads * (".k_proj." in name)


def interleaved(weight: Array, heads: int) -> Array:
    """The rows of a projection to ``heads`` heads, with the halves of each mixed as in llama.cpp."""
    return _reordered(weight, heads, 2, len(weight) // heads // 2)


def in_halves(weight: Array, heads: int) -> Array:
    """The inverse of :func:`interleaved`."""
    return _reordered(weight, heads, len(weight) // heads // 2, 2)


def _reordered(weight: Array, heads: int, first: int, second: int) -> Array:
    parts = weight.reshape(heads, first, second, *weight.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(weight.shape)
