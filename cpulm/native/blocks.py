"""Matrices of weights in int8, with a scale for each 32 inputs of each output, and products with them."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from cpulm.native.arguments import ptr, ptr_or_null, scratch, threads
from cpulm.native.thread_pool import parts

BLOCK_INPUTS = 32
"""Inputs that share a scale; they have to divide a matrix's inputs."""


class BlockMatrix:
    """A matrix [outputs, inputs] of weights, quantized once.

    Args:
        library: see :class:`cpulm.native.kernels.Kernels`.
        weight: float32 [outputs, inputs].
        memory: uint8 of :func:`block_matrix_bytes`, which is written.

    Raises:
        ValueError: if blocks do not divide the inputs.
    """

    def __init__(self, library: ctypes.CDLL, weight: Tensor, memory: Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        size = block_matrix_bytes(library, self.outputs, self.inputs)
        self._library, self._values = library, memory
        self.address = ptr(memory, size, dtype=torch.uint8)
        library.cpulm_pack_blocks(
            ptr(weight, *weight.shape), self.outputs, self.inputs, self.address, parts()
        )

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x matrixᵀ + bias`` [..., outputs] of x [..., inputs], which is quantized in the same way.

        A row of the result depends on its row of x alone, and not on the number of threads.
        """
        rows = x.reshape(-1, x.size(-1)).contiguous()
        y = rows.new_empty(len(rows), self.outputs)
        memory = scratch(self._library.cpulm_block_workspace(len(rows), self.inputs), dtype=torch.uint8)
        self._library.cpulm_block_product(
            ptr(rows, len(rows), self.inputs), len(rows), self.inputs, self.address, self.outputs,
            ptr_or_null(bias, self.outputs), y.data_ptr(), memory.data_ptr(), threads(),
        )  # fmt: skip
        return y.view(*x.shape[:-1], self.outputs)


def block_matrix_bytes(library: ctypes.CDLL, outputs: int, inputs: int) -> int:
    """Bytes of a matrix in blocks.

    Raises:
        ValueError: if blocks do not divide the inputs.
    """
    if inputs <= 0 or inputs % BLOCK_INPUTS:
        raise ValueError(f"rows of {inputs}: blocks are of {BLOCK_INPUTS} inputs")
    return int(library.cpulm_block_matrix_bytes(outputs, inputs))
