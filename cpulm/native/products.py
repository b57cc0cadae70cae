"""Products in float32 in the parts of the open pool, by MKL's function, which torch itself calls for them.

torch computes a product in a region of OpenMP, whose threads all wait for one that has lost its processor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cpulm.linked_functions import linked_function
from cpulm.native import thread_pool

_LARGEST = 2**31 - 1

pooled = False
"""Whether products run in the pool while it is open."""


def give_sgemm(library: ctypes.CDLL) -> bool:
    """Give a library of kernels the function of MKL, whose threads can be limited for each thread of ours.

    Returns:
        Whether torch has it.
    """
    has_mkl = linked_function(thread_pool.MKL_THREADS) is not None
    address = linked_function("sgemm_") if has_mkl else None
    library.cpulm_use_sgemm(address)
    return address is not None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x weightᵀ + bias`` [..., N] of x [..., K] and weight [N, K]."""
    if bias is not None or not _is_pooled(x):
        return F.linear(x, weight, bias)
    apply: Callable[..., Tensor] = _Linear.apply
    return apply(x, weight)


def mm(a: Tensor, b: Tensor, *, out: Tensor, add: bool = False) -> Tensor:
    """Write ``a b`` to ``out`` [M, N], or add it with ``add``; for a [M, K] and b [K, N]. No gradients."""
    library = thread_pool.open_library() if _is_pooled(a) and _is_pooled(b) else None
    if library is None or not out.is_contiguous() or max(*a.shape, *b.shape) > _LARGEST:
        return out.addmm_(a, b) if add else torch.mm(a, b, out=out)
    (a, a_transposed), (b, b_transposed) = _rows_of(a), _rows_of(b)
    library.cpulm_product(
        a.data_ptr(), a_transposed, b.data_ptr(), b_transposed, out.size(0), out.size(1),
        a.size(0) if a_transposed else a.size(1), out.data_ptr(), add, thread_pool.parts(),
    )  # fmt: skip
    return out


def _is_pooled(x: Tensor) -> bool:
    return pooled and x.dtype is torch.float32 and x.device.type == "cpu"


def _rows_of(x: Tensor) -> tuple[Tensor, bool]:
    """``x`` as contiguous rows, or its transpose, and whether it is the transpose."""
    if x.is_contiguous():
        return x, False
    return (x.t(), True) if x.t().is_contiguous() else (x.contiguous(), False)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rows = x.reshape(-1, x.size(-1))
        ctx.save_for_backward(rows, weight)
        y = mm(rows, weight.t(), out=rows.new_empty(rows.size(0), weight.size(0)))
        return y.view(*x.shape[:-1], weight.size(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        grads = grad.reshape(-1, grad.size(-1))
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = mm(grads, weight, out=torch.empty_like(rows)).view(*grad.shape[:-1], weight.size(1))
        if ctx.needs_input_grad[1]:
            dw = mm(grads.t(), rows, out=torch.empty_like(weight))
        return dx, dw
