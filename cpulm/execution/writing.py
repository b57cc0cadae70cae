"""Prepares a trained model to write text: its weights on huge pages of memory, and in int8 where possible."""

from __future__ import annotations

import torch
from torch import Tensor

from cpulm.address_space import more_memory
from cpulm.errors import ResourceError
from cpulm.execution.runtime import Runtime
from cpulm.model.decoding import decoder_shape, quantize
from cpulm.model.transformer import Transformer
from cpulm.system.huge_pages import huge_page_memory

_ALIGNED = 16
"""Numbers to which the weights are aligned: a cache line of float32."""


def prepare_to_write(model: Transformer, runtime: Runtime, precision: str) -> None:
    """Equip a model whose weights will not change any more; ``model.writes_in`` says in which precision.

    In int8 the matrices have a scale for each 32 inputs, as in llama.cpp's q8_0, and are kept beside those
    in fp32. Losses stay in fp32: int8 is for forward passes with a cache.

    Args:
        precision: as requested: ``fp32``, or int8 where the compiled kernels can.

    Raises:
        ResourceError: if there is not enough memory.
    """
    runtime.equip(model)
    kernels = runtime.kernels
    if runtime.device.type != "cpu" or kernels is None:
        return
    _move(model)
    if precision != "fp32" and kernels.can_decode(decoder_shape(model, in_blocks=True)):
        quantize(model, kernels, _allocate)


def _move(model: Transformer) -> None:
    """Put the weights on huge pages."""
    parameters = list(model.parameters())
    rooms = [-(-parameter.numel() // _ALIGNED) * _ALIGNED for parameter in parameters]
    memory = _allocate(4 * sum(rooms)).view(torch.float32)
    for parameter, room in zip(parameters, memory.split(rooms), strict=True):
        parameter.data = room[: parameter.numel()].view_as(parameter).copy_(parameter.data)


def _allocate(size_bytes: int) -> Tensor:
    try:
        return torch.frombuffer(huge_page_memory(size_bytes), dtype=torch.uint8)
    except (OSError, MemoryError) as error:
        raise ResourceError("there is not enough memory for the weights", more_memory()) from error
