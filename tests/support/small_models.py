"""Small models of every family, with weights large enough that predictions and attention differ."""

from __future__ import annotations

from typing import Any

import torch

from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings

BLOCK = 16
GPT2: dict[str, Any] = {
    "norm": "layernorm",
    "position": "learned",
    "mlp": "gelu",
    "qk_norm": False,
    "bias": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "grouped": {"n_kv_head": 1},
    "without qk_norm": {"qk_norm": False},
    "head_dim": {"head_dim": 4},
    "gpt2": GPT2,
    "sinusoidal": {"position": "sinusoidal", "mlp": "relu2"},
    "none": {"position": "none"},
}


def a_model(vocab_size: int = 40, **values: Any) -> Transformer:
    """In eval mode, without gradients, as one is loaded."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": BLOCK, **values}
    model = Transformer(ModelSettings.model_validate({"tie_embeddings": False, **shape}), vocab_size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty(parameter.shape).normal_(generator=generator)
            parameter.copy_(0.3 * noise if parameter.ndim == 2 else parameter + 0.1 * noise)
    return model.eval().requires_grad_(False)
