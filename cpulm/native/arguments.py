"""Tensors and numbers as the compiled functions take them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor


def ptr(tensor: Tensor | None) -> ctypes.c_void_p | None:
    """Where a contiguous tensor begins."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def ptrs(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """Where each of some contiguous tensors begins."""
    assert all(tensor.is_contiguous() for tensor in tensors)
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def f32(value: float) -> ctypes.c_float:
    return ctypes.c_float(value)


def i64(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def u32(value: int) -> ctypes.c_uint32:
    return ctypes.c_uint32(value)


def threads() -> ctypes.c_int:
    """As many as torch uses."""
    return ctypes.c_int(torch.get_num_threads())


def scratch(width: int) -> Tensor:
    """Scratch memory for each thread's own sums over rows."""
    return torch.empty(torch.get_num_threads(), width)


def require_lanes(x: Tensor, lanes: int) -> None:
    """A row that does not end with a vector would be written beyond its end.

    Raises:
        ValueError: where vectors of ``lanes`` numbers do not divide the rows of ``x``.
    """
    if x.size(-1) % lanes:
        raise ValueError(f"rows of {x.size(-1)}: the kernels take multiples of {lanes}")
