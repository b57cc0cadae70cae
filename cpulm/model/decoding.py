"""Generation with the compiled kernels: a new token of each sequence through the whole model in one call.

A token needs few operations but hundreds of small functions: in torch most of its time is their overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cpulm.model.cache import AnyCache
from cpulm.model.modules import Linear
from cpulm.native.blocks import BlockMatrix
from cpulm.native.decode import Decoder, DecoderShape, Weight
from cpulm.native.kernels import Kernels
from cpulm.settings import ModelSettings


class DecodedModel(Protocol):
    """What is asked of a :class:`cpulm.model.transformer.Transformer`."""

    settings: ModelSettings
    vocab_size: int
    blocks: nn.ModuleList
    norm: nn.Module
    attention_kernels: Kernels | None
    head_blocks: BlockMatrix | None

    @property
    def head_weight(self) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def modules(self) -> Iterator[nn.Module]: ...


def decoder_for(model: DecodedModel, cache: AnyCache) -> Decoder | None:
    """The decoder of ``model`` for ``cache``, built at the first call.

    None if it cannot be used: without kernels, with gradients or adapters, in another dtype than float32, on
    another device than the CPU, for an activation that the kernel does not know, or for widths that do not
    fit.
    """
    kernels = model.attention_kernels
    if kernels is None or torch.is_grad_enabled():
        return None
    if cache.decoder is None:
        shape = decoder_shape(model, in_blocks=model.head_blocks is not None)
        tensors = (cache.keys, *model.parameters())
        like = all(tensor.dtype is torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        adapted = any(getattr(module, "adapter", None) is not None for module in model.modules())
        if adapted or not like or not kernels.can_decode(shape):
            return None
        head = model.head_weight if model.head_blocks is None else model.head_blocks
        last: dict[str, Weight | None] = {
            "norm": _weight(model.norm),
            "norm_bias": getattr(model.norm, "bias", None),
            "head": head,
        }
        cache.decoder = kernels.decoder(shape, [_weights(block) for block in model.blocks], last)
    return cache.decoder


def decoder_shape(model: DecodedModel, *, in_blocks: bool) -> DecoderShape:
    """What the kernel has to know of ``model``, with matrices in int8 or not."""
    settings = model.settings
    return DecoderShape(
        width=settings.n_embd,
        heads=settings.n_head,
        kv_heads=settings.kv_heads,
        head_dim=settings.head_width,
        inner=settings.inner_width,
        up_width=settings.linear_layers.up.outputs,
        vocab_size=model.vocab_size,
        norm=settings.norm,
        activation=settings.mlp,
        in_blocks=in_blocks,
        eps=settings.norm_eps,
    )


def quantize(model: DecodedModel, kernels: Kernels, allocate: Callable[[int], Tensor]) -> None:
    """Keep the matrices of ``model`` in int8 beside those in float32, for forward passes with a cache.

    The weights must not change any more. :meth:`cpulm.native.kernels.Kernels.can_decode` has to hold for
    :func:`decoder_shape`.

    Args:
        allocate: gives so many bytes, as uint8.
    """
    layers = [module for module in model.blocks.modules() if isinstance(module, Linear)]
    weights = [*(layer.weight for layer in layers), model.head_weight]
    sizes = [kernels.block_matrix_bytes(weight) for weight in weights]
    memory = allocate(sum(sizes)).split(sizes)
    *blocks, model.head_blocks = map(kernels.block_matrix, weights, memory)
    for layer, its_blocks in zip(layers, blocks, strict=True):
        layer.blocks = its_blocks


def _weights(block: Any) -> dict[str, Weight | None]:
    """The weights of one block by the kernel's names; None for what the model does not have."""
    attn, mlp = block.attn, block.mlp
    modules = {
        "attn_norm": block.attn_norm, "qkv": attn.qkv, "q_norm": attn.q_norm, "k_norm": attn.k_norm,
        "out": attn.out, "mlp_norm": block.mlp_norm, "up": mlp.first, "down": mlp.down,
    }  # fmt: skip
    weights = {name: None if module is None else _weight(module) for name, module in modules.items()}
    return weights | {f"{name}_bias": getattr(module, "bias", None) for name, module in modules.items()}


def _weight(module: Any) -> Weight:
    blocks = getattr(module, "blocks", None)
    weight: Weight = module.weight if blocks is None else blocks
    return weight
