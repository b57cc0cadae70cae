"""The compiled kernels as functions of tensors.

All tensors are contiguous float32 on the CPU unless said; every function allocates what it returns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cpulm.native.arguments import f32, i64, ptr, require_lanes, scratch, threads, u32
from cpulm.native.decode import Decoder, DecoderShape
from cpulm.native.int8 import Int8Kernels
from cpulm.native.library import opened


@dataclass(frozen=True)
class AttentionShape:
    """What attention does with a joint projection [B, T, (H + 2 K) D].

    Attributes:
        n_head: H.
        n_kv_head: K, which divides H.
        head_dim: D, a multiple of the kernels' ``lanes``.
        eps: of the norms of queries and keys.
        dropout: probability that a weight is left out.
        seed: of that choice, 0 to 2**32 - 1.
    """

    n_head: int
    n_kv_head: int
    head_dim: int
    eps: float = 1e-6
    dropout: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class QKTransform:
    """What is done to queries and keys before they meet, None for what is not done.

    Attributes:
        q_weight: [D] of the queries' norm, and ``k_weight`` of the keys'.
        cos: [T, D / 2] of the rotation, as ``sin``.
    """

    q_weight: Tensor | None
    k_weight: Tensor | None
    cos: Tensor | None
    sin: Tensor | None


class Kernels:
    """The functions of one compiled library.

    Args:
        library: made by :func:`cpulm.native.library.compiled`.

    Raises:
        KernelsUnavailableError: where it cannot be loaded.
    """

    def __init__(self, library: Path) -> None:
        self._library = opened(library)
        self.name = library.stem
        """Other sources, another compiler or CPU give another name."""
        self.lanes = int(self._library.cpulm_lanes())
        """Numbers in one vector: what widths have to be multiples of."""
        fast = bool(self._library.cpulm_fast_int8())
        self.int8 = Int8Kernels(self._library, self.lanes) if fast else None
        """Products of int8, None where the CPU has no instructions for them that the compiler knows."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``x / sqrt(mean(x²) + eps) * weight`` for x [..., D], and the factors 1 / sqrt [rows]."""
        rows, width = x.numel() // x.size(-1), x.size(-1)
        y, rstd = torch.empty_like(x), x.new_empty(rows)
        self._library.cpulm_rms_norm_forward(
            ptr(x), ptr(weight), f32(eps), i64(rows), i64(width), ptr(y), ptr(rstd), threads()
        )
        return y, rstd

    def rms_norm_backward(self, dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x [..., D] and weight [D]."""
        rows, width = x.numel() // x.size(-1), x.size(-1)
        dx, weight_grad, sums = torch.empty_like(x), torch.empty_like(weight), scratch(width)
        self._library.cpulm_rms_norm_backward(
            ptr(dy), ptr(x), ptr(weight), ptr(rstd), i64(rows), i64(width),
            ptr(dx), ptr(weight_grad), ptr(sums), threads(),
        )  # fmt: skip
        return dx, weight_grad

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` for gate and up side by side in [..., 2 F]; gives [..., F]."""
        width = gate_up.size(-1) // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], width)
        rows = y.numel() // width
        self._library.cpulm_swiglu_forward(ptr(gate_up), i64(rows), i64(width), ptr(y), threads())
        return y

    def swiglu_backward(self, dy: Tensor, gate_up: Tensor) -> Tensor:
        """The gradient of gate_up [..., 2 F]."""
        width = dy.size(-1)
        grad, rows = torch.empty_like(gate_up), dy.numel() // width
        self._library.cpulm_swiglu_backward(
            ptr(dy), ptr(gate_up), i64(rows), i64(width), ptr(grad), threads()
        )
        return grad

    def relu2(self, x: Tensor) -> Tensor:
        """``relu(x)²`` for x [..., D]."""
        require_lanes(x, self.lanes)
        y = torch.empty_like(x)
        self._library.cpulm_relu2_forward(ptr(x), i64(x.numel()), ptr(y), threads())
        return y

    def relu2_backward(self, dy: Tensor, x: Tensor) -> Tensor:
        """The gradient of x [..., D]."""
        dx = torch.empty_like(x)
        self._library.cpulm_relu2_backward(ptr(dy), ptr(x), i64(x.numel()), ptr(dx), threads())
        return dx

    def dropout(self, x: Tensor, p: float, seed: int) -> Tensor:
        """x [..., D] with each number 0 by a probability of ``p``, else divided by ``1 - p``."""
        require_lanes(x, self.lanes)
        y, below = torch.empty_like(x), u32(round(p * 2**32))
        self._library.cpulm_dropout(
            ptr(x), i64(x.numel()), u32(seed), below, f32(1.0 / (1.0 - p)), ptr(y),
            threads(),
        )  # fmt: skip
        return y

    def decoder(self, shape: DecoderShape, layers: Sequence[Mapping[str, Tensor | None]]) -> Decoder:
        """What computes the next token's way through ``layers``."""
        return Decoder(self._library, shape, layers)

    def attention(
        self, qkv: Tensor, shape: AttentionShape, transform: QKTransform, first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Causal attention of qkv [B, T, (H + 2 K) D].

        Args:
            first: [B, T] int32, the first token that each one sees; None: token 0.

        Returns:
            The heads' results [B, T, H D], and the logarithms of the softmaxes' divisors [B, H, T].
        """
        B, T, _ = qkv.shape
        y = qkv.new_empty(B, T, shape.n_head * shape.head_dim)
        lse = qkv.new_empty(B, shape.n_head, T)
        self._library.cpulm_attention_forward(
            ptr(qkv),
            _dimensions(B, T, shape),
            *_attention_options(shape, transform, first),
            ptr(y),
            ptr(lse),
            threads(),
        )
        return y, lse

    def attention_backward(
        self,
        dy: Tensor,
        qkv: Tensor,
        y: Tensor,
        lse: Tensor,
        shape: AttentionShape,
        transform: QKTransform,
        first: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of qkv, and [2, D] of the norms' weights for queries and keys."""
        B, T, _ = qkv.shape
        dqkv = torch.empty_like(qkv)
        weight_grads = qkv.new_empty(B * shape.n_kv_head, 2, shape.head_dim)
        self._library.cpulm_attention_backward(
            ptr(dy), ptr(qkv), ptr(y), ptr(lse), _dimensions(B, T, shape),
            *_attention_options(shape, transform, first), ptr(dqkv), ptr(weight_grads), threads(),
        )  # fmt: skip
        return dqkv, weight_grads.sum(0)


def _dimensions(batch: int, tokens: int, shape: AttentionShape) -> ctypes.Array[ctypes.c_int]:
    return (ctypes.c_int * 5)(batch, tokens, shape.n_head, shape.n_kv_head, shape.head_dim)


def _attention_options(
    shape: AttentionShape, transform: QKTransform, first: Tensor | None
) -> tuple[object, ...]:
    dropped_below = round(shape.dropout * 2**32)
    return (
        ptr(transform.q_weight), ptr(transform.k_weight), ptr(transform.cos), ptr(transform.sin),
        f32(shape.eps), ptr(first), u32(shape.seed), u32(dropped_below), f32(1.0 / (1.0 - shape.dropout)),
    )  # fmt: skip
