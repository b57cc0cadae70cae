"""The compiled kernels as functions of tensors.

All tensors are contiguous float32 on the CPU unless said; every function allocates what it returns.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cpulm.native.library import opened


@dataclass(frozen=True)
class Heads:
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
class Turn:
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
        self.lanes = int(self._library.cpulm_lanes())
        """Numbers in one vector: what widths have to be multiples of."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``x / sqrt(mean(x²) + eps) * weight`` for x [..., D], and the factors 1 / sqrt [rows]."""
        rows, width = x.numel() // x.size(-1), x.size(-1)
        y, rstd = torch.empty_like(x), x.new_empty(rows)
        self._library.cpulm_rms_norm_forward(
            _at(x), _at(weight), _float(eps), _long(rows), _long(width), _at(y), _at(rstd), _threads()
        )
        return y, rstd

    def rms_norm_backward(self, dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x [..., D] and weight [D]."""
        rows, width = x.numel() // x.size(-1), x.size(-1)
        dx, weight_grad, room = torch.empty_like(x), torch.empty_like(weight), _room(width)
        self._library.cpulm_rms_norm_backward(
            _at(dy), _at(x), _at(weight), _at(rstd), _long(rows), _long(width),
            _at(dx), _at(weight_grad), _at(room), _threads(),
        )  # fmt: skip
        return dx, weight_grad

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` for gate and up side by side in [..., 2 F]; gives [..., F]."""
        width = gate_up.size(-1) // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], width)
        rows = y.numel() // width
        self._library.cpulm_swiglu_forward(_at(gate_up), _long(rows), _long(width), _at(y), _threads())
        return y

    def swiglu_backward(self, dy: Tensor, gate_up: Tensor) -> Tensor:
        """The gradient of gate_up [..., 2 F]."""
        width = dy.size(-1)
        grad, rows = torch.empty_like(gate_up), dy.numel() // width
        self._library.cpulm_swiglu_backward(
            _at(dy), _at(gate_up), _long(rows), _long(width), _at(grad), _threads()
        )
        return grad

    def quantize_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [M, K] as int8 and a scale for each row [M]: ``x ≈ q * scale``; a row's largest is 127."""
        self._require_lanes(x)
        q, scale = torch.empty_like(x, dtype=torch.int8), x.new_empty(x.size(0))
        rows, width = x.shape
        self._library.cpulm_quantize(
            _at(x), _long(rows), _long(width), _at(q), _at(scale), None, None, None, _threads()
        )
        return q, scale

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [M, K] as int8 with a scale for each row [M], and as int8 with a scale for each column [K]."""
        self._require_lanes(x)
        rows, width = x.shape
        by_row, by_column = torch.empty_like(x, dtype=torch.int8), torch.empty_like(x, dtype=torch.int8)
        row_scale, column_scale, room = x.new_empty(rows), x.new_empty(width), _room(width)
        self._library.cpulm_quantize(
            _at(x), _long(rows), _long(width), _at(by_row), _at(row_scale), _at(by_column), _at(column_scale),
            _at(room), _threads(),
        )  # fmt: skip
        return by_row, row_scale, by_column, column_scale

    def rescale(self, sums: Tensor, row_scale: Tensor, column_scale: Tensor, bias: Tensor | None) -> Tensor:
        """Int32 sums [M, N] as float32 in the same memory: times both scales [M], [N], plus the bias [N]."""
        self._require_lanes(sums)
        rows, width = sums.shape
        self._library.cpulm_rescale(
            _at(sums), _long(rows), _long(width), _at(row_scale), _at(column_scale), _at(bias), _threads()
        )
        return sums.view(torch.float32)

    def dropout(self, x: Tensor, p: float, seed: int) -> Tensor:
        """x [..., D] with each number 0 by a probability of ``p``, else divided by ``1 - p``."""
        self._require_lanes(x)
        y, below = torch.empty_like(x), ctypes.c_uint32(round(p * 2**32))
        self._library.cpulm_dropout(
            _at(x), _long(x.numel()), ctypes.c_uint32(seed), below, _float(1.0 / (1.0 - p)), _at(y),
            _threads(),
        )  # fmt: skip
        return y

    def softmax(
        self, sums: Tensor, row_scale: Tensor, column_scale: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses [M] in nats, and softmax probabilities as int8 [M, V] with a scale for each row [M].

        Args:
            sums: [M, V] int32, logits but for their scales [M] and [V]; overwritten.
            targets: [M] int64; where negative, loss and scale are 0, where V or more, the loss is NaN.
        """
        self._require_lanes(sums)
        rows, width = sums.shape
        losses, scale = row_scale.new_empty(rows), row_scale.new_empty(rows)
        by_row = torch.empty_like(sums, dtype=torch.int8)
        self._library.cpulm_softmax(
            _at(sums), _long(rows), _long(width), _at(row_scale), _at(column_scale), _at(targets),
            _at(losses), _at(by_row), _at(scale), _threads(),
        )  # fmt: skip
        return losses, by_row, scale

    def polynomial(self, x: Tensor, a: float, b: float, c: float) -> Tensor:
        """``a x + (b G + c G G) x`` with G = x xᵀ for x [M, N], whose three products are of int8.

        The diagonals of G and of the polynomial are kept in float32: they are much larger than the rest.
        """
        self._require_lanes(x.mT)
        by_row, row_scale, by_column, column_scale = self.quantize(x)
        rows, width = x.shape
        diagonal, more = x.new_empty(rows), x.new_empty(rows)
        square_rows, scale = by_row.new_empty(rows, rows), x.new_empty(rows)
        rest = torch._int_mm(by_row, by_row.t())  # becomes float32 in its own place
        self._library.cpulm_muon_gram(
            _at(rest), _long(rows), _at(row_scale), _at(diagonal), _at(square_rows), _at(scale), _threads()
        )
        sums = torch._int_mm(square_rows, square_rows.t())  # symmetric: its rows are its columns
        self._library.cpulm_muon_polynomial(
            _at(sums), _long(rows), _at(scale), _at(rest), _at(diagonal), _float(a), _float(b), _float(c),
            _at(more), _at(square_rows), _at(row_scale), _threads(),
        )  # fmt: skip
        product = torch._int_mm(square_rows, by_column)
        self._library.cpulm_muon_apply(
            _at(product), _long(rows), _long(width), _at(row_scale), _at(column_scale), _at(more), _at(x),
            _threads(),
        )  # fmt: skip
        return product.view(torch.float32)

    def attention(self, qkv: Tensor, heads: Heads, turn: Turn, first: Tensor | None) -> tuple[Tensor, Tensor]:
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
            _at(qkv), _shape(B, T, heads), *_rules(heads, turn, first), _at(y), _at(lse), _threads()
        )
        return y, lse

    def attention_backward(
        self, dy: Tensor, qkv: Tensor, y: Tensor, lse: Tensor, heads: Heads, turn: Turn, first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of qkv, and [2, D] of the norms' weights for queries and keys."""
        B, T, _ = qkv.shape
        dqkv = torch.empty_like(qkv)
        weight_grads = qkv.new_empty(B * heads.n_kv_head, 2, heads.head_dim)
        self._library.cpulm_attention_backward(
            _at(dy), _at(qkv), _at(y), _at(lse), _shape(B, T, heads), *_rules(heads, turn, first),
            _at(dqkv), _at(weight_grads), _threads(),
        )  # fmt: skip
        return dqkv, weight_grads.sum(0)

    def _require_lanes(self, x: Tensor) -> None:
        """A row that does not end with a vector would be written beyond its end."""
        if x.size(-1) % self.lanes:
            raise ValueError(f"rows of {x.size(-1)}: the kernels take multiples of {self.lanes}")


def _at(tensor: Tensor | None) -> ctypes.c_void_p | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def _float(value: float) -> ctypes.c_float:
    return ctypes.c_float(value)


def _long(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def _threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())


def _room(width: int) -> Tensor:
    """Scratch memory for each thread's own sums over rows."""
    return torch.empty(torch.get_num_threads(), width)


def _shape(batch: int, tokens: int, heads: Heads) -> ctypes.Array[ctypes.c_int]:
    return (ctypes.c_int * 5)(batch, tokens, heads.n_head, heads.n_kv_head, heads.head_dim)


def _rules(heads: Heads, turn: Turn, first: Tensor | None) -> tuple[object, ...]:
    dropped_below = round(heads.dropout * 2**32)
    return (
        _at(turn.q_weight), _at(turn.k_weight), _at(turn.cos), _at(turn.sin), _float(heads.eps), _at(first),
        ctypes.c_uint32(heads.seed), ctypes.c_uint32(dropped_below), _float(1.0 / (1.0 - heads.dropout)),
    )  # fmt: skip
