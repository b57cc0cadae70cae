"""The compiled kernels as functions of tensors.

Unless stated otherwise, tensors are contiguous float32 on the CPU; every function allocates what it returns,
and raises ValueError for tensors that do not fit together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cpulm.linked_functions import linked_function
from cpulm.native.arguments import ptr, ptr_or_null, require_lanes, scratch
from cpulm.native.blocks import BlockMatrix, block_matrix_bytes
from cpulm.native.decode import Decoder, DecoderShape, Weight, decoder_fits
from cpulm.native.int8 import Int8Kernels
from cpulm.native.library import load, use_openmp
from cpulm.native.library_cache import name_of
from cpulm.native.products import give_sgemm
from cpulm.native.thread_pool import ThreadPool, parts, working_threads


@dataclass(frozen=True)
class AttentionShape:
    """Shape and options of attention over a joint projection [B, T, (H + 2 K) D].

    Attributes:
        n_head: H.
        n_kv_head: K, which divides H.
        head_dim: D, a multiple of the kernels' ``lanes``.
        eps: of the norms of queries and keys.
        dropout: probability that an attention weight is dropped.
        seed: of dropout's random choice, 0 to 2**32 - 1.
    """

    n_head: int
    n_kv_head: int
    head_dim: int
    eps: float = 1e-6
    dropout: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class QKTransform:
    """QK norm and rotary embedding; None for what the model does not have.

    Attributes:
        q_weight: [D] of the queries' norm.
        k_weight: [D] of the keys' norm.
        cos: [T, D / 2] of the rotary angles.
        sin: [T, D / 2] of the rotary angles.
    """

    q_weight: Tensor | None
    k_weight: Tensor | None
    cos: Tensor | None
    sin: Tensor | None


class Kernels:
    """The functions of one compiled library.

    Args:
        library: of :func:`cpulm.native.library.compile_kernels` or a shipped one.
        variant: the instruction sets that a shipped library was compiled for; empty for one compiled here.

    Raises:
        KernelsUnavailableError: if it cannot be loaded.
    """

    def __init__(self, library: Path, variant: str = "") -> None:
        self._library = load(library)
        self.variant = variant
        self.name = library.stem if variant else name_of(library)
        """Another name for other sources, another compiler or another CPU."""
        self.threaded = use_openmp(self._library, linked_function)
        """Whether they run on torch's threads; else torch has no OpenMP, and they run on one or in a pool."""
        self.pool = ThreadPool(self._library) if self._library.cpulm_has_pool() else None
        """Threads of their own, for use beside busy programs; None where the system has no pools."""
        self.has_products = give_sgemm(self._library)
        """Whether float32 products can run in the pool."""
        self.lanes = int(self._library.cpulm_lanes())
        """Float32 numbers in one vector; widths have to be multiples of it."""
        self._sum_blocks = int(self._library.cpulm_sum_blocks())
        fast = bool(self._library.cpulm_fast_int8())
        self.int8 = Int8Kernels(self._library, self.lanes) if fast else None
        """Int8 products; None if the CPU has no instructions for them that the compiler knows."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``x / sqrt(mean(x²) + eps) * weight`` for x [..., D], and the factors 1 / sqrt [rows]."""
        rows, width = self._rows(x)
        y, rstd = torch.empty_like(x), x.new_empty(rows)
        self._library.cpulm_rms_norm_forward(
            ptr(x, *x.shape),
            ptr(weight, width),
            eps,
            rows,
            width,
            ptr(y, *x.shape),
            ptr(rstd, rows),
            parts(),
        )
        return y, rstd

    def rms_norm_backward(self, dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x [..., D] and weight [D]."""
        rows, width = self._rows(x)
        dx, weight_grad, sums = (
            torch.empty_like(x),
            torch.empty_like(weight),
            scratch(self._sum_blocks, width),
        )
        self._library.cpulm_rms_norm_backward(
            ptr(dy, *x.shape), ptr(x, *x.shape), ptr(weight, width), ptr(rstd, rows), rows, width,
            ptr(dx, *x.shape), ptr(weight_grad, width), sums.data_ptr(), parts(),
        )  # fmt: skip
        return dx, weight_grad

    def layer_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(x - mean) / sqrt(variance + eps) * weight + bias``, the means, and the factors 1 / sqrt.

        Args:
            x: [..., D]; the means and factors are [rows].
            bias: [D]; None: 0.
        """
        rows, width = self._rows(x)
        y, mean, rstd = torch.empty_like(x), x.new_empty(rows), x.new_empty(rows)
        self._library.cpulm_layer_norm_forward(
            ptr(x, *x.shape), ptr(weight, width), ptr_or_null(bias, width), eps, rows, width,
            ptr(y, *x.shape), ptr(mean, rows), ptr(rstd, rows), parts(),
        )  # fmt: skip
        return y, mean, rstd

    def layer_norm_backward(
        self, dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x [..., D], weight [D] and bias [D]."""
        rows, width = self._rows(x)
        dx, weight_grad, bias_grad = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        sums = scratch(2, self._sum_blocks, width)
        self._library.cpulm_layer_norm_backward(
            ptr(dy, *x.shape), ptr(x, *x.shape), ptr(weight, width), ptr(mean, rows), ptr(rstd, rows),
            rows, width, ptr(dx, *x.shape), ptr(weight_grad, width), ptr(bias_grad, width), sums.data_ptr(),
            parts(),
        )  # fmt: skip
        return dx, weight_grad, bias_grad

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` for gate and up side by side in [..., 2 F]; gives [..., F]."""
        rows, width = self._rows(gate_up, halves=2)
        y = gate_up.new_empty(*gate_up.shape[:-1], width)
        self._library.cpulm_swiglu_forward(ptr(gate_up, *gate_up.shape), rows, width, y.data_ptr(), parts())
        return y

    def swiglu_backward(self, dy: Tensor, gate_up: Tensor) -> Tensor:
        """The gradient of gate_up [..., 2 F]."""
        rows, width = self._rows(gate_up, halves=2)
        grad = torch.empty_like(gate_up)
        self._library.cpulm_swiglu_backward(
            ptr(dy, *gate_up.shape[:-1], width), ptr(gate_up, *gate_up.shape), rows, width, grad.data_ptr(),
            parts(),
        )  # fmt: skip
        return grad

    def relu2(self, x: Tensor) -> Tensor:
        """``relu(x)²`` for x [..., D]."""
        self._rows(x)
        y = torch.empty_like(x)
        self._library.cpulm_relu2_forward(ptr(x, *x.shape), x.numel(), y.data_ptr(), parts())
        return y

    def relu2_backward(self, dy: Tensor, x: Tensor) -> Tensor:
        """The gradient of x [..., D]."""
        self._rows(x)
        dx = torch.empty_like(x)
        self._library.cpulm_relu2_backward(
            ptr(dy, *x.shape), ptr(x, *x.shape), x.numel(), dx.data_ptr(), parts()
        )
        return dx

    def dropout(self, x: Tensor, p: float, seed: int) -> Tensor:
        """x [..., D] with each number set to 0 with probability ``p``, else divided by ``1 - p``."""
        self._rows(x)
        y = torch.empty_like(x)
        self._library.cpulm_dropout(
            ptr(x, *x.shape), x.numel(), seed, round(p * 2**32), 1.0 / (1.0 - p), y.data_ptr(), parts()
        )
        return y

    def can_decode(self, shape: DecoderShape) -> bool:
        """Whether there is a decoder for such a model."""
        return decoder_fits(self._library, shape, self.lanes)

    def decoder(
        self,
        shape: DecoderShape,
        layers: Sequence[Mapping[str, Weight | None]],
        last: Mapping[str, Weight | None],
    ) -> Decoder:
        """A decoder of single tokens; :meth:`can_decode` has to hold."""
        return Decoder(self._library, shape, layers, last)

    def block_matrix_bytes(self, weight: Tensor) -> int:
        """Bytes of ``weight`` [outputs, inputs] in int8."""
        return block_matrix_bytes(self._library, *weight.shape)

    def block_matrix(self, weight: Tensor, memory: Tensor) -> BlockMatrix:
        """Quantize ``weight`` [outputs, inputs] into ``memory``."""
        return BlockMatrix(self._library, weight, memory)

    def attention(
        self, qkv: Tensor, shape: AttentionShape, transform: QKTransform, first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Causal attention of qkv [B, T, (H + 2 K) D].

        Args:
            first: [B, T] int32, the first token that each token attends to; None: token 0.

        Returns:
            The heads' outputs [B, T, H D], and the logarithms of the softmax divisors [B, H, T].
        """
        B, T, _ = qkv.shape
        y = qkv.new_empty(B, T, shape.n_head * shape.head_dim)
        lse = qkv.new_empty(B, shape.n_head, T)
        memory = self._attention_scratch(T, shape)
        self._library.cpulm_attention_forward(
            *self._attention_inputs(qkv, shape, transform, first),
            ptr(y, *y.shape), ptr(lse, *lse.shape), memory.data_ptr(), len(memory),
        )  # fmt: skip
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
        """Gradients of qkv, and of the norms' weights for queries and keys [2, D]."""
        B, T, _ = qkv.shape
        inputs = self._attention_inputs(qkv, shape, transform, first)
        outputs = (B, T, shape.n_head * shape.head_dim)
        dqkv, memory = torch.empty_like(qkv), self._attention_scratch(T, shape)
        weight_grads = qkv.new_empty(B * shape.n_kv_head, 2, shape.head_dim)
        self._library.cpulm_attention_backward(
            ptr(dy, *outputs), inputs[0], ptr(y, *outputs), ptr(lse, B, shape.n_head, T), *inputs[1:],
            dqkv.data_ptr(), weight_grads.data_ptr(), memory.data_ptr(), len(memory),
        )  # fmt: skip
        return dqkv, weight_grads.sum(0)

    def _rows(self, x: Tensor, halves: int = 1) -> tuple[int, int]:
        """Rows and width of x [..., halves * width], whose width the vectors have to divide."""
        width = x.size(-1) // halves
        require_lanes(width, self.lanes)
        if x.size(-1) % halves:
            raise ValueError(f"rows of {x.size(-1)} do not have {halves} equal parts")
        return x.numel() // x.size(-1), width

    def _attention_scratch(self, tokens: int, shape: AttentionShape) -> Tensor:
        return scratch(working_threads(), self._library.cpulm_attention_workspace(tokens, shape.head_dim))

    def _attention_inputs(
        self, qkv: Tensor, shape: AttentionShape, transform: QKTransform, first: Tensor | None
    ) -> tuple[int | float | None, ...]:
        """The arguments that forward and backward share, from qkv to dropout's factor."""
        B, T, _ = qkv.shape
        H, K, D = shape.n_head, shape.n_kv_head, shape.head_dim
        require_lanes(D, self.lanes)
        if K < 1 or H % K or (transform.cos is None) != (transform.sin is None):
            raise ValueError(f"{H} query heads, {K} key-value heads: not a shape of attention")
        return (
            ptr(qkv, B, T, (H + 2 * K) * D), B, T, H, K, D,
            ptr_or_null(transform.q_weight, D), ptr_or_null(transform.k_weight, D),
            ptr_or_null(transform.cos, T, D // 2), ptr_or_null(transform.sin, T, D // 2),
            shape.eps, ptr_or_null(first, B, T, dtype=torch.int32), shape.seed,
            round(shape.dropout * 2**32), 1.0 / (1.0 - shape.dropout),
        )  # fmt: skip
