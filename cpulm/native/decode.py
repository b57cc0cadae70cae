"""One new token of each sequence through all blocks of a model, in one call of a compiled kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cpulm.native.arguments import ptr, ptr_or_null, scratch, threads


class DecoderShape(NamedTuple):
    """What the kernel has to know of a model.

    Attributes:
        width: of the residual stream.
        heads: of queries.
        kv_heads: of keys and values; divides ``heads``.
        head_dim: width of a head.
        inner: width of the MLP's hidden layer.
        up_width: outputs of the MLP's first matrix, which the activation takes to ``inner``.
        norm: by the settings' name.
        activation: by the settings' name.
        eps: of all norms.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    up_width: int
    norm: str
    activation: str
    eps: float

    def tensors(self, batch: int, cache_tokens: int) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of a layer, by the kernel's names."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        matrices = {
            "qkv": (q + 2 * kv, self.width),
            "out": (self.width, q),
            "up": (self.up_width, self.width),
            "down": (self.width, self.inner),
        }
        norms = {
            "attn_norm": (self.width,),
            "mlp_norm": (self.width,),
            "q_norm": (self.head_dim,),
            "k_norm": (self.head_dim,),
        }
        biases = {f"{name}_bias": (shape[0],) for name, shape in matrices.items()}
        biases |= {f"{name}_bias": (self.width,) for name in ("attn_norm", "mlp_norm")}
        cache = (batch, self.kv_heads, cache_tokens, self.head_dim)
        return {**matrices, **norms, **biases, "keys": cache, "values": cache}


def decoder_fits(library: ctypes.CDLL, shape: DecoderShape, lanes: int) -> bool:
    """Whether the kernel knows norm and activation, and vectors of ``lanes`` numbers divide all widths."""
    return (
        shape.norm in _names(library.cpulm_decode_norms)
        and shape.activation in _names(library.cpulm_decode_activations)
        and not any(width % lanes for width in (shape.width, shape.head_dim, shape.inner))
    )


class Decoder:
    """Runs one token of each sequence through the blocks of a model with one cache.

    Args:
        library: see :class:`cpulm.native.kernels.Kernels`.
        shape: of the model, for which :func:`decoder_fits` holds.
        layers: for each block its float32 tensors by the names of :meth:`DecoderShape.tensors`; missing or
            None if the model has none. ``keys`` and ``values`` are written to.

    Raises:
        ValueError: if a tensor does not have its shape, or the cache is missing.
    """

    def __init__(
        self, library: ctypes.CDLL, shape: DecoderShape, layers: Sequence[Mapping[str, Tensor | None]]
    ) -> None:
        keys = layers[0].get("keys")
        if keys is None:
            raise ValueError("the decoder needs the cache's keys and values")
        self._library, self._shape = library, shape
        self.batch, self.cache_tokens = keys.size(0), keys.size(2)
        self._layers = layers  # keeps the tensors at their addresses
        shapes = shape.tensors(self.batch, self.cache_tokens)
        addresses = [
            ptr_or_null(layer.get(name), *shapes[name])
            for layer in layers
            for name in _names(library.cpulm_decode_tensors)
        ]
        self._addresses = (ctypes.c_void_p * len(addresses))(*addresses)
        sizes = {
            **shape._asdict(),
            "layers": len(layers),
            "batch": self.batch,
            "cache_tokens": self.cache_tokens,
            "norm": _names(library.cpulm_decode_norms).index(shape.norm),
            "activation": _names(library.cpulm_decode_activations).index(shape.activation),
        }
        order = _names(library.cpulm_decode_sizes)
        self._sizes = (ctypes.c_int32 * len(order))(*(sizes[name] for name in order))

    def step(self, x: Tensor, position: int, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """The blocks' output [B, width] for one token of each sequence with the embeddings x [B, width].

        Args:
            position: of the token, below the cache's tokens; its keys and values are written there.
            cos: [1, head_dim / 2] of the rotary angles at that position; None without rotary embedding.
            sin: as ``cos``.

        Raises:
            ValueError: if x or the position do not fit.
        """
        shape = self._shape
        if x.shape != (self.batch, shape.width) or not 0 <= position < self.cache_tokens:
            raise ValueError(
                f"{list(x.shape)} at position {position} of a cache for {self.batch} x {self.cache_tokens}"
            )
        out = x.clone(memory_format=torch.contiguous_format)
        memory = scratch(self._library.cpulm_decode_workspace(self._sizes, threads()))
        rope = (1, shape.head_dim // 2)
        self._library.cpulm_decode(
            self._addresses, self._sizes, shape.eps, position,
            ptr_or_null(cos, *rope), ptr_or_null(sin, *rope), ptr(out, *x.shape), memory.data_ptr(),
            threads(),
        )  # fmt: skip
        return out


def _names(function: Callable[[], bytes]) -> list[str]:
    """The list that one of the library's functions names."""
    return function().decode().split()
