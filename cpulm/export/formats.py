"""The names of the formats, for all who choose one."""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["hf", "gguf", "page", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)

Quantization = Literal["f32", "f16", "q8_0", "q4_0", "q4_k"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
"""How a GGUF file stores matrices."""
