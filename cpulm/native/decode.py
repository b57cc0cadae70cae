"""One new token of each sequence through all blocks of a model, in one call of a compiled kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
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

    def tensors(self) -> dict[str, tuple[int, ...]]:
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
        return {**matrices, **norms, **biases}


def decoder_fits(library: ctypes.CDLL, shape: DecoderShape, lanes: int) -> bool:
    """Whether the kernel knows norm and activation, and vectors of ``lanes`` numbers divide all widths."""
    return (
        shape.norm in _names(library.cpulm_decode_norms)
        and shape.activation in _names(library.cpulm_decode_activations)
        and not any(width % lanes for width in (shape.width, shape.head_dim, shape.inner))
    )


class CachedSequences:
    """Where the keys and values of a cache's sequences are.

    Args:
        keys: float32 [layers, sequences, kv_heads, room, head_dim] on the CPU; written to by the kernel.
        values: as ``keys``.

    Raises:
        ValueError: if the tensors do not have these shapes, or a head's keys are not one block of memory.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        layers, count, kv_heads, self.room, head_dim = keys.shape
        for one in (keys, values):
            ptr(one[0, 0], kv_heads, self.room, head_dim)
            if one.shape != keys.shape or one.stride() != keys.stride():
                raise ValueError(f"keys {list(keys.shape)} and values {list(one.shape)} are not alike")
        self.heads = layers, kv_heads, head_dim
        self._tensors = keys, values  # keeps them at their addresses
        between = 4 * keys.stride(1) * np.arange(count)
        self._table = np.empty((count, 5), dtype=np.int64)
        self._table[:, 0], self._table[:, 1] = keys.data_ptr() + between, values.data_ptr() + between
        self._table[:, 2:4] = keys.stride(0), self.room

    def at(self, position: int) -> npt.NDArray[np.int64]:
        """The sequences in the kernel's form, if the next token of each has this position.

        Raises:
            ValueError: if there is no room for it.
        """
        if not 0 <= position < self.room:
            raise ValueError(f"a token at position {position} of a cache for {self.room}")
        self._table[:, 4] = position
        return self._table


Placed: TypeAlias = tuple[CachedSequences, int]
"""Sequences, and the position that the next token of each has."""


class Decoder:
    """Runs one token of each sequence through the blocks of a model.

    Args:
        library: see :class:`cpulm.native.kernels.Kernels`.
        shape: of the model, for which :func:`decoder_fits` holds.
        layers: for each block its float32 tensors by the names of :meth:`DecoderShape.tensors`; missing or
            None if the model has none.

    Raises:
        ValueError: if a tensor does not have its shape.
    """

    def __init__(
        self, library: ctypes.CDLL, shape: DecoderShape, layers: Sequence[Mapping[str, Tensor | None]]
    ) -> None:
        self._library, self._shape = library, shape
        self._layers = layers  # keeps the tensors at their addresses
        shapes = shape.tensors()
        addresses = [
            ptr_or_null(layer.get(name), *shapes[name])
            for layer in layers
            for name in _names(library.cpulm_decode_tensors)
        ]
        self._addresses = (ctypes.c_void_p * len(addresses))(*addresses)
        sizes = {
            **shape._asdict(),
            "layers": len(layers),
            "norm": _names(library.cpulm_decode_norms).index(shape.norm),
            "activation": _names(library.cpulm_decode_activations).index(shape.activation),
        }
        order = _names(library.cpulm_decode_sizes)
        self._sizes = (ctypes.c_int32 * len(order))(*(sizes[name] for name in order))

    def step(self, x: Tensor, placed: Sequence[Placed], cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """The blocks' output [B, width] for one token of each sequence with the embeddings x [B, width].

        Each sequence's output depends on no other sequence, nor on how many there are.

        Args:
            placed: the sequences, B together; their new keys and values are written.
            cos: [positions, head_dim / 2] of the rotary angles from position 0 on; None without rotary
                embedding.
            sin: as ``cos``.

        Raises:
            ValueError: if x, a cache or a position does not fit.
        """
        shape = self._shape
        table = np.concatenate([sequences.at(position) for sequences, position in placed])
        longest = 1 + max(position for _, position in placed)
        of_model = len(self._layers), shape.kv_heads, shape.head_dim
        if x.shape != (len(table), shape.width) or any(one.heads != of_model for one, _ in placed):
            raise ValueError(f"{list(x.shape)} for {len(table)} cached sequences of {of_model}")
        positions = longest if cos is None else cos.size(0)
        if positions < longest:
            raise ValueError(f"rotary angles of {positions} positions for {longest} tokens")
        out = x.clone(memory_format=torch.contiguous_format)
        used = threads()
        memory = scratch(self._library.cpulm_decode_workspace(self._sizes, len(table), longest, used))
        rope = (positions, shape.head_dim // 2)
        self._library.cpulm_decode(
            self._addresses, self._sizes, shape.eps, table.ctypes.data, len(table), longest,
            ptr_or_null(cos, *rope), ptr_or_null(sin, *rope), ptr(out, *x.shape), memory.data_ptr(), used,
        )  # fmt: skip
        return out


def _names(function: Callable[[], bytes]) -> list[str]:
    """The list that one of the library's functions names."""
    return function().decode().split()
