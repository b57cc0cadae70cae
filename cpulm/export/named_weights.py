"""The weights of a model under the names that Hugging Face transformers gives them.

Matrices are [outputs, inputs], as torch's linear layers have them, for every architecture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cpulm.export.architecture import Architecture
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings

Weights: TypeAlias = dict[str, npt.NDArray[np.float32]]

_GPT2_NAMES = {
    "attn_norm": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_LLAMA_NAMES = {
    "attn_norm": "input_layernorm",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "attn.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.down": "mlp.down_proj",
}


def own_weights(model: Transformer) -> Weights:
    """Return the model's weights by the names of its own parameters; the arrays share their memory."""
    return {name: weight.numpy() for name, weight in model.state_dict().items()}


def named_weights(model: Transformer, architecture: Architecture) -> Weights:
    """Return the model's weights by the names of ``architecture`` in transformers."""
    ours, settings = own_weights(model), model.settings
    if architecture == "gpt2":
        positions = ours.get("wpe.weight")
        if positions is None:
            fixed = model.sinusoids.numpy() if settings.position == "sinusoidal" else None
            shape = settings.block_size, settings.n_embd
            positions = np.zeros(shape, dtype=np.float32) if fixed is None else fixed
        named = dict(_gpt2(ours, settings))
        named["transformer.wpe.weight"] = positions
    else:
        named = dict(_llama_like(ours, settings))
    if not settings.tie_embeddings:
        named["lm_head.weight"] = ours["lm_head.weight"]
    return named


def _llama_like(ours: Weights, settings: ModelSettings) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    yield "model.embed_tokens.weight", ours["wte.weight"]
    q, kv = settings.n_head * settings.head_width, settings.kv_heads * settings.head_width
    for layer in range(settings.n_layer):
        mine, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        for kind in ("weight", "bias"):
            if (joint := ours.get(f"{mine}attn.qkv.{kind}")) is not None:
                for name, part in zip("qkv", np.split(joint, (q, q + kv)), strict=True):
                    yield f"{theirs}self_attn.{name}_proj.{kind}", part
            if (joint := ours.get(f"{mine}mlp.gate_up.{kind}")) is not None:
                for name, part in zip(("gate", "up"), np.split(joint, 2), strict=True):
                    yield f"{theirs}mlp.{name}_proj.{kind}", part
            for name, other in _LLAMA_NAMES.items():
                if (weight := ours.get(f"{mine}{name}.{kind}")) is not None:
                    yield f"{theirs}{other}.{kind}", weight
    yield "model.norm.weight", ours["norm.weight"]


def _gpt2(ours: Weights, settings: ModelSettings) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    yield "transformer.wte.weight", ours["wte.weight"]
    layers = [
        (f"blocks.{layer}.{name}", f"transformer.h.{layer}.{other}")
        for layer in range(settings.n_layer)
        for name, other in _GPT2_NAMES.items()
    ]
    for name, other in [*layers, ("norm", "transformer.ln_f")]:
        weight = ours[f"{name}.weight"]
        yield f"{other}.weight", weight
        bias = ours.get(f"{name}.bias")  # GPT-2 always has biases
        yield f"{other}.bias", np.zeros(len(weight), dtype=np.float32) if bias is None else bias
