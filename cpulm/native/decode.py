"""One new token of each sequence through a model, in one call of a compiled kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpulm.native.arguments import ptr, ptr_or_null, scratch, threads
from cpulm.native.blocks import BLOCK_INPUTS, BlockMatrix

Weight: TypeAlias = Tensor | BlockMatrix
"""A float32 tensor, or a matrix in int8."""


class DecoderShape(NamedTuple):
    """What the kernel has to know of a model.

    Attributes:
        width: of the residual stream.
        heads: of queries.
        kv_heads: of keys and values; divides ``heads``.
        head_dim: width of a head.
        inner: width of the MLP's hidden layer.
        up_width: outputs of the MLP's first matrix, which the activation takes to ``inner``.
        vocab_size: outputs of the head.
        norm: by the settings' name.
        activation: by the settings' name.
        in_blocks: whether the matrices are in int8.
        eps: of all norms.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    up_width: int
    vocab_size: int
    norm: str
    activation: str
    in_blocks: bool
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

    def last_tensors(self) -> dict[str, tuple[int, ...]]:
        """As :meth:`tensors`, of those behind the layers."""
        return {"norm": (self.width,), "norm_bias": (self.width,), "head": (self.vocab_size, self.width)}


def decoder_fits(library: ctypes.CDLL, shape: DecoderShape, lanes: int) -> bool:
    """Whether the kernel knows norm and activation, and vectors of ``lanes`` numbers divide all widths.

    In int8 blocks have to divide the matrices' inputs.
    """
    inputs = (shape.width, shape.heads * shape.head_dim, shape.inner)
    if shape.in_blocks and any(width % BLOCK_INPUTS for width in inputs):
        return False
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
    """Runs one token of each sequence through a model.

    Args:
        library: see :class:`cpulm.native.kernels.Kernels`.
        shape: of the model, for which :func:`decoder_fits` holds.
        layers: for each block its weights by the names of :meth:`DecoderShape.tensors`; missing or None if
            the model has none.
        last: the same for :meth:`DecoderShape.last_tensors`.

    Raises:
        ValueError: if a weight does not have its shape, or a matrix is not in int8 as the others are.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        shape: DecoderShape,
        layers: Sequence[Mapping[str, Weight | None]],
        last: Mapping[str, Weight | None],
    ) -> None:
        self._library, self._shape = library, shape
        self._weights = layers, last  # keeps them at their addresses
        parts = [(layer, library.cpulm_decode_tensors, shape.tensors()) for layer in layers]
        parts.append((last, library.cpulm_decode_last_tensors, shape.last_tensors()))
        addresses = [
            _address(part.get(name), shapes[name], shape.in_blocks)
            for part, names, shapes in parts
            for name in _names(names)
        ]
        self._addresses = (ctypes.c_void_p * len(addresses))(*addresses)
        sizes = {
            **shape._asdict(),
            "layers": len(layers),
            "norm": _names(library.cpulm_decode_norms).index(shape.norm),
            "activation": _names(library.cpulm_decode_activations).index(shape.activation),
            "in_blocks": int(shape.in_blocks),
        }
        order = _names(library.cpulm_decode_sizes)
        self._sizes = (ctypes.c_int32 * len(order))(*(sizes[name] for name in order))

    def step(self, x: Tensor, placed: Sequence[Placed], cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """The logits [B, vocab_size] behind one token of each sequence with the embeddings x [B, width].

        Each sequence's logits depend on no other sequence, nor on how many there are.

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
        of_model = len(self._weights[0]), shape.kv_heads, shape.head_dim
        if x.shape != (len(table), shape.width) or any(one.heads != of_model for one, _ in placed):
            raise ValueError(f"{list(x.shape)} for {len(table)} cached sequences of {of_model}")
        positions = longest if cos is None else cos.size(0)
        if positions < longest:
            raise ValueError(f"rotary angles of {positions} positions for {longest} tokens")
        stream, logits = x.clone(memory_format=torch.contiguous_format), x.new_empty(len(x), shape.vocab_size)
        used = threads()
        memory = scratch(self._library.cpulm_decode_workspace(self._sizes, len(table), longest, used))
        rope = (positions, shape.head_dim // 2)
        self._library.cpulm_decode(
            self._addresses, self._sizes, shape.eps, table.ctypes.data, len(table), longest,
            ptr_or_null(cos, *rope), ptr_or_null(sin, *rope), ptr(stream, *x.shape),
            ptr(logits, *logits.shape), memory.data_ptr(), used,
        )  # fmt: skip
        return logits


def _address(weight: Weight | None, shape: tuple[int, ...], in_blocks: bool) -> int | None:
    if not isinstance(weight, BlockMatrix):
        if in_blocks and len(shape) == 2:
            raise ValueError(f"the matrix {list(shape)} is not in int8")
        return ptr_or_null(weight, *shape)
    if not in_blocks or shape != (weight.outputs, weight.inputs):
        raise ValueError(f"a matrix [{weight.outputs}, {weight.inputs}] in int8 for {list(shape)}")
    return weight.address


def _names(function: Callable[[], bytes]) -> list[str]:
    """The list that one of the library's functions names."""
    return function().decode().split()
