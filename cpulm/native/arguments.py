"""The addresses of tensors, checked: of a wrong tensor a kernel would read or write beyond the end."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor


def ptr(x: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> int:
    """The address of ``x``.

    Raises:
        ValueError: if ``x`` is not a contiguous tensor of this shape and dtype on the CPU.
    """
    if x.shape != shape or x.dtype is not dtype or x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError(
            f"the kernels need a contiguous {dtype} tensor {list(shape)} on the CPU, not a "
            f"{'' if x.is_contiguous() else 'non-contiguous '}{x.dtype} tensor {list(x.shape)} on {x.device}"
        )
    return x.data_ptr()


def ptr_or_null(x: Tensor | None, *shape: int, dtype: torch.dtype = torch.float32) -> int | None:
    """As :func:`ptr`; None for None."""
    return None if x is None else ptr(x, *shape, dtype=dtype)


def ptrs(tensors: Sequence[Tensor], *shape: int) -> ctypes.Array[ctypes.c_void_p]:
    """The addresses of float32 tensors of one shape, checked as by :func:`ptr`."""
    return (ctypes.c_void_p * len(tensors))(*(ptr(tensor, *shape) for tensor in tensors))


def threads() -> int:
    """Threads of a region whose threads meet, which runs on OpenMP's: torch's number."""
    return torch.get_num_threads()


def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Working memory for a kernel, aligned to cache lines.

    Torch allocates it, so that a lack of memory is torch's error and not a null pointer in a kernel.
    """
    return torch.empty(shape, dtype=dtype)


def require_lanes(width: int, lanes: int) -> None:
    """Refuse rows that do not end with a whole vector: a kernel would write beyond their ends.

    Raises:
        ValueError: if ``width`` is not a positive multiple of ``lanes``.
    """
    if width <= 0 or width % lanes:
        raise ValueError(f"rows of {width}: the kernels take multiples of {lanes}")
