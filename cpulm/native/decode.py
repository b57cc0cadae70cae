"""One new token through all blocks of a model at once, in a compiled kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cpulm.native.arguments import i64, ptr, threads

NORMS = ("rmsnorm", "layernorm")
ACTIVATIONS = ("swiglu", "gelu", "gelu_erf", "relu", "relu2")
"""As the kernel numbers them."""

LAYER_TENSORS = (
    "attn_norm", "attn_norm_bias", "qkv", "qkv_bias", "q_norm", "k_norm", "out", "out_bias",
    "mlp_norm", "mlp_norm_bias", "up", "up_bias", "down", "down_bias", "keys", "values",
)  # fmt: skip
"""Of a layer, in the kernel's order."""


class _DecodeLayer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in LAYER_TENSORS]


class _DecodeSizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("layers", "batch", "width", "heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_int32) for name in ("inner", "cache_tokens", "norm", "activation")),
        ("eps", ctypes.c_float),
    ]


class DecoderShape(NamedTuple):
    """What the kernel has to know of a model.

    Attributes:
        width: of the residual stream.
        heads: of queries; ``kv_heads``, which divides it, of keys and values.
        head_dim: numbers in a head.
        inner: of the MLP's hidden layer.
        norm: of :data:`NORMS`.
        activation: of :data:`ACTIVATIONS`.
        eps: of all norms.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    norm: str
    activation: str
    eps: float

    def fits(self, lanes: int) -> bool:
        """Whether vectors of ``lanes`` numbers divide all widths."""
        widths = (self.width, self.head_dim, self.inner)
        return self.norm in NORMS and self.activation in ACTIVATIONS and not any(w % lanes for w in widths)


class Decoder:
    """A model's weights and one cache, ready to be computed with.

    Args:
        library: see :class:`cpulm.native.kernels.Kernels`.
        shape: of the model; it has to fit.
        layers: for each block its float32 tensors by the names in :data:`LAYER_TENSORS`, missing or None if
            the model has none: norms [width] or [head_dim], matrices [outputs, inputs] in the layout of the
            transformer's, keys and values [B, kv_heads, tokens, head_dim], which are written to.
    """

    def __init__(
        self, library: ctypes.CDLL, shape: DecoderShape, layers: Sequence[Mapping[str, Tensor | None]]
    ) -> None:
        self._library = library
        self._held = [
            tensor for layer in layers for tensor in layer.values()
        ]  # lives as long as their places
        self._layers = (_DecodeLayer * len(layers))()
        for own, layer in zip(self._layers, layers, strict=True):
            for name in LAYER_TENSORS:
                setattr(own, name, ptr(layer.get(name)))
        keys = layers[0]["keys"]
        assert keys is not None
        self.batch, self.cache_tokens = keys.size(0), keys.size(2)
        self._sizes = _DecodeSizes(
            len(layers), self.batch, shape.width, shape.heads, shape.kv_heads, shape.head_dim, shape.inner,
            self.cache_tokens, NORMS.index(shape.norm), ACTIVATIONS.index(shape.activation), shape.eps,
        )  # fmt: skip

    def step(self, x: Tensor, position: int, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """The blocks' output [B, width] for one token of each text, whose embeddings are x.

        Args:
            position: of the token, below the cache's cache_tokens; its keys and values are written there.
            cos: [1, head_dim / 2] of the rotation at that position, as ``sin``; None without one.

        Raises:
            ValueError: where x or the position do not fit.
        """
        if x.shape != (self.batch, self._sizes.width) or not 0 <= position < self.cache_tokens:
            raise ValueError(
                f"{list(x.shape)} at position {position} of a cache for {self.batch} x {self.cache_tokens}"
            )
        out = x.clone(memory_format=torch.contiguous_format)
        self._library.cpulm_decode(
            self._layers, ctypes.byref(self._sizes), i64(position), ptr(cos), ptr(sin), ptr(out), threads()
        )
        return out
