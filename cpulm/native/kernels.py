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

from cpulm.native.arguments import at, long, real, require_lanes, room, threads, word
from cpulm.native.decode import Decoder, Shape
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
            at(x), at(weight), real(eps), long(rows), long(width), at(y), at(rstd), threads()
        )
        return y, rstd

    def rms_norm_backward(self, dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x [..., D] and weight [D]."""
        rows, width = x.numel() // x.size(-1), x.size(-1)
        dx, weight_grad, own = torch.empty_like(x), torch.empty_like(weight), room(width)
        self._library.cpulm_rms_norm_backward(
            at(dy), at(x), at(weight), at(rstd), long(rows), long(width),
            at(dx), at(weight_grad), at(own), threads(),
        )  # fmt: skip
        return dx, weight_grad

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` for gate and up side by side in [..., 2 F]; gives [..., F]."""
        width = gate_up.size(-1) // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], width)
        rows = y.numel() // width
        self._library.cpulm_swiglu_forward(at(gate_up), long(rows), long(width), at(y), threads())
        return y

    def swiglu_backward(self, dy: Tensor, gate_up: Tensor) -> Tensor:
        """The gradient of gate_up [..., 2 F]."""
        width = dy.size(-1)
        grad, rows = torch.empty_like(gate_up), dy.numel() // width
        self._library.cpulm_swiglu_backward(at(dy), at(gate_up), long(rows), long(width), at(grad), threads())
        return grad

    def relu2(self, x: Tensor) -> Tensor:
        """``relu(x)²`` for x [..., D]."""
        require_lanes(x, self.lanes)
        y = torch.empty_like(x)
        self._library.cpulm_relu2_forward(at(x), long(x.numel()), at(y), threads())
        return y

    def relu2_backward(self, dy: Tensor, x: Tensor) -> Tensor:
        """The gradient of x [..., D]."""
        dx = torch.empty_like(x)
        self._library.cpulm_relu2_backward(at(dy), at(x), long(x.numel()), at(dx), threads())
        return dx

    def dropout(self, x: Tensor, p: float, seed: int) -> Tensor:
        """x [..., D] with each number 0 by a probability of ``p``, else divided by ``1 - p``."""
        require_lanes(x, self.lanes)
        y, below = torch.empty_like(x), word(round(p * 2**32))
        self._library.cpulm_dropout(
            at(x), long(x.numel()), word(seed), below, real(1.0 / (1.0 - p)), at(y),
            threads(),
        )  # fmt: skip
        return y

    def decoder(self, shape: Shape, layers: Sequence[Mapping[str, Tensor | None]]) -> Decoder:
        """What computes the next token's way through ``layers``."""
        return Decoder(self._library, shape, layers)

    def attention(
        self, qkv: Tensor, heads: AttentionShape, turn: QKTransform, first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Causal attention of qkv [B, T, (H + 2 K) D].

        Args:
            first: [B, T] int32, the first token that each one sees; None: token 0.

        Returns:
            The heads' results [B, T, H D], and the logarithms of the softmaxes' divisors [B, H, T].
        """
        B, T, _ = qkv.shape
        y = qkv.new_empty(B, T, heads.n_head * heads.head_dim)
        lse = qkv.new_empty(B, heads.n_head, T)
        self._library.cpulm_attention_forward(
            at(qkv), _shape(B, T, heads), *_rules(heads, turn, first), at(y), at(lse), threads()
        )
        return y, lse

    def attention_backward(
        self,
        dy: Tensor,
        qkv: Tensor,
        y: Tensor,
        lse: Tensor,
        heads: AttentionShape,
        turn: QKTransform,
        first: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of qkv, and [2, D] of the norms' weights for queries and keys."""
        B, T, _ = qkv.shape
        dqkv = torch.empty_like(qkv)
        weight_grads = qkv.new_empty(B * heads.n_kv_head, 2, heads.head_dim)
        self._library.cpulm_attention_backward(
            at(dy), at(qkv), at(y), at(lse), _shape(B, T, heads), *_rules(heads, turn, first),
            at(dqkv), at(weight_grads), threads(),
        )  # fmt: skip
        return dqkv, weight_grads.sum(0)


def _shape(batch: int, tokens: int, heads: AttentionShape) -> ctypes.Array[ctypes.c_int]:
    return (ctypes.c_int * 5)(batch, tokens, heads.n_head, heads.n_kv_head, heads.head_dim)


def _rules(heads: AttentionShape, turn: QKTransform, first: Tensor | None) -> tuple[object, ...]:
    dropped_below = round(heads.dropout * 2**32)
    return (
        at(turn.q_weight), at(turn.k_weight), at(turn.cos), at(turn.sin), real(heads.eps), at(first),
        word(heads.seed), word(dropped_below), real(1.0 / (1.0 - heads.dropout)),
    )  # fmt: skip
