"""Small models with random weights, made and saved by transformers in the shapes of well-known ones."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from cpulm.data.tokenizer import Tokenizer, train_bpe

VOCAB = 400
ROWS = 410
"""Rows of the embeddings: more than the tokenizer has tokens, as in Qwen3."""
_SHAPE = {"vocab_size": ROWS, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 96}
CONFIGS: dict[str, Any] = {
    # SmolLM2-135M: 576 wide, 30 layers, 9 heads over 3 key-value heads, tied
    "smollm2": LlamaConfig(
        **_SHAPE,
        num_attention_heads=6,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        max_position_embeddings=128,
    ),
    # Qwen3-0.6B: 1,024 wide, 28 layers, 16 heads of 128 over 8, tied
    "qwen3": Qwen3Config(
        **_SHAPE,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        max_position_embeddings=128,
    ),
    "untied llama": LlamaConfig(
        **_SHAPE, num_attention_heads=4, attention_bias=True, max_position_embeddings=128
    ),
    "qwen2": Qwen2Config(**_SHAPE, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128),
    "gpt2": GPT2Config(vocab_size=ROWS, n_positions=128, n_embd=48, n_layer=2, n_head=4),
}


@cache
def tokenizer() -> Tokenizer:
    return train_bpe([Path(__file__).read_text(encoding="utf-8") * 3], VOCAB)


def hf_model(name: str) -> Any:
    """The model of transformers, with weights large enough that predictions and attention differ."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim == 2 else 0.1))
    return model.eval()


def saved(model: Any, folder: Path, **how: Any) -> Path:
    """Save it as transformers does, with a tokenizer."""
    model.save_pretrained(folder, **how)
    (folder / "tokenizer.json").write_text(tokenizer().to_json(), encoding="utf-8")
    return folder
