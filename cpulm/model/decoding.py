"""Generation with the compiled kernels: all blocks of a model for one new token of each text in one call.

A token needs few operations but hundreds of small functions: in torch most of its time is their start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cpulm.model.cache import KVCache
from cpulm.native.decode import Decoder, DecoderShape

if TYPE_CHECKING:
    from cpulm.model.transformer import Transformer


def decoder_for(model: Transformer, cache: KVCache) -> Decoder | None:
    """What computes the blocks of ``model`` with ``cache``, made at the first call.

    None where it cannot be used: without kernels, with gradients or dropout, in other numbers than float32,
    for widths that do not fit.
    """
    kernels, settings = model.attention_kernels, model.settings
    if kernels is None or torch.is_grad_enabled() or (model.training and settings.dropout):
        return None
    if cache.decoder is None:
        weight = model.wte.weight
        shape = DecoderShape(
            width=settings.n_embd,
            heads=settings.n_head,
            kv_heads=settings.kv_heads,
            head_dim=settings.head_width,
            inner=settings.inner_width,
            norm=settings.norm,
            activation=settings.mlp,
            eps=settings.norm_eps,
        )
        like = weight.dtype is cache.keys.dtype is torch.float32 and weight.device.type == "cpu"
        if not like or not shape.fits(kernels.lanes):
            return None
        layers = [_parts(block, cache, layer) for layer, block in enumerate(model.blocks)]
        cache.decoder = kernels.decoder(shape, layers)
    return cache.decoder


def _parts(block: Any, cache: KVCache, layer: int) -> dict[str, Tensor | None]:
    attn, mlp = block.attn, block.mlp
    up = mlp.gate_up if hasattr(mlp, "gate_up") else mlp.up
    modules = {
        "attn_norm": block.attn_norm, "qkv": attn.qkv, "q_norm": attn.q_norm, "k_norm": attn.k_norm,
        "out": attn.out, "mlp_norm": block.mlp_norm, "up": up, "down": mlp.down,
    }  # fmt: skip
    parts = {name: None if module is None else module.weight for name, module in modules.items()}
    parts |= {f"{name}_bias": getattr(module, "bias", None) for name, module in modules.items()}
    return parts | {"keys": cache.keys[layer], "values": cache.values[layer]}
