"""Generation with the compiled kernels: all blocks for one new token of each sequence in one call.

A token needs few operations but hundreds of small functions: in torch most of its time is their overhead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cpulm.model.cache import AnyCache
from cpulm.native.decode import Decoder, DecoderShape
from cpulm.native.kernels import Kernels
from cpulm.settings import ModelSettings


def decoder_for(
    kernels: Kernels | None, settings: ModelSettings, blocks: nn.ModuleList, cache: AnyCache
) -> Decoder | None:
    """The decoder of ``blocks`` for ``cache``, built at the first call.

    None if it cannot be used: without kernels, with gradients or adapters, in another dtype than float32, on
    another device than the CPU, for an activation that the kernel does not know, or for widths that do not
    fit.
    """
    if kernels is None or torch.is_grad_enabled():
        return None
    if cache.decoder is None:
        layers = settings.linear_layers
        shape = DecoderShape(
            width=settings.n_embd,
            heads=settings.n_head,
            kv_heads=settings.kv_heads,
            head_dim=settings.head_width,
            inner=settings.inner_width,
            up_width=layers.up.outputs,
            norm=settings.norm,
            activation=settings.mlp,
            eps=settings.norm_eps,
        )
        tensors = (cache.keys, *blocks.parameters())
        like = all(tensor.dtype is torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        adapted = any(getattr(module, "adapter", None) is not None for module in blocks.modules())
        if adapted or not like or not kernels.can_decode(shape):
            return None
        cache.decoder = kernels.decoder(shape, [_tensors(block) for block in blocks])
    return cache.decoder


def _tensors(block: Any) -> dict[str, Tensor | None]:
    """The tensors of one block by the kernel's names; None for what the model does not have."""
    attn, mlp = block.attn, block.mlp
    modules = {
        "attn_norm": block.attn_norm, "qkv": attn.qkv, "q_norm": attn.q_norm, "k_norm": attn.k_norm,
        "out": attn.out, "mlp_norm": block.mlp_norm, "up": mlp.first, "down": mlp.down,
    }  # fmt: skip
    tensors = {name: None if module is None else module.weight for name, module in modules.items()}
    return tensors | {f"{name}_bias": getattr(module, "bias", None) for name, module in modules.items()}
