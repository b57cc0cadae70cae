"""A model as a folder that Hugging Face transformers, MLX, vLLM and their like load.

The configuration is written for transformers 4 and 5: the base of the rotary frequencies stands under both
of its names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cpulm.data.encoder import unknown_id
from cpulm.data.records.chat import END, end_ids
from cpulm.export.chat_template import JINJA
from cpulm.export.model_card import model_card
from cpulm.export.trained_model import TrainedModel
from cpulm.layer_shapes import ACTIVATIONS
from cpulm.pretrained.architecture import Architecture, architecture_of
from cpulm.pretrained.named_weights import is_transposed, named_weights
from cpulm.pretrained.save_tensors import save_tensors
from cpulm.settings import ModelSettings

_CLASSES: Mapping[Architecture, str] = {
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}

HF_FILES = frozenset(
    {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
        *("tokenizer_config.json", "README.md"),
    }
)
"""The names of all files that are written."""


def write_hf(trained: TrainedModel, folder: Path) -> None:
    """Write the model's files into ``folder``.

    Raises:
        SettingsError: if no architecture has the model's block.
    """
    architecture = architecture_of(trained.model.settings)
    weights = named_weights(trained.model, architecture)
    for name, weight in weights.items():
        if is_transposed(architecture, name, weight.ndim):
            weights[name] = np.ascontiguousarray(weight.T)
    save_tensors(weights, folder / "model.safetensors", {"format": "pt"})
    ids: dict[str, Any] = dict.fromkeys(
        ("bos_token_id", "eos_token_id", "pad_token_id"), trained.tokenizer.eot_id
    )
    if trained.talks:
        ids["eos_token_id"] = sorted(end_ids(trained.tokenizer), reverse=True)
    files = {
        "config.json": {**_config(trained, architecture), **ids},
        "generation_config.json": {"do_sample": True, "temperature": 0.8, "top_k": 50, **ids},
        "tokenizer_config.json": _tokenizer_config(trained),
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "tokenizer.json").write_text(trained.tokenizer.to_json(), encoding="utf-8")
    (folder / "README.md").write_text(model_card(trained), encoding="utf-8", errors="backslashreplace")


def _config(trained: TrainedModel, architecture: Architecture) -> dict[str, Any]:
    settings = trained.model.settings
    shared = {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "vocab_size": trained.model.vocab_size,
        "tie_word_embeddings": settings.tie_embeddings,
        "torch_dtype": "float32",
        "dtype": "float32",
    }
    return shared | (_gpt2_config(settings) if architecture == "gpt2" else _llama_config(settings))


def _llama_config(settings: ModelSettings) -> dict[str, Any]:
    values = {
        "hidden_size": settings.n_embd,
        "intermediate_size": settings.inner_width,
        "num_hidden_layers": settings.n_layer,
        "num_attention_heads": settings.n_head,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_width,
        "hidden_act": ACTIVATIONS[settings.mlp].in_transformers,
        "max_position_embeddings": settings.block_size,
        "rms_norm_eps": settings.norm_eps,
        "rope_theta": settings.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": settings.rope_theta},
        "attention_bias": settings.bias,
        "attention_dropout": 0.0,
    }
    if settings.qk_norm:  # Qwen3
        values |= {
            "use_sliding_window": False,
            "sliding_window": None,
            "layer_types": ["full_attention"] * settings.n_layer,
        }
    else:
        values["mlp_bias"] = settings.bias
    return values


def _gpt2_config(settings: ModelSettings) -> dict[str, Any]:
    return {
        "n_positions": settings.block_size,
        "n_embd": settings.n_embd,
        "n_layer": settings.n_layer,
        "n_head": settings.n_head,
        "n_inner": settings.inner_width,
        "activation_function": ACTIVATIONS[settings.mlp].in_transformers,
        "layer_norm_epsilon": settings.norm_eps,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }


def _tokenizer_config(trained: TrainedModel) -> dict[str, Any]:
    unknown = unknown_id(trained.tokenizer)
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), trained.end_of_text)
    if unknown is not None:
        special["unk_token"] = str(trained.tokenizer.inner.id_to_token(unknown))
    if trained.talks:
        special |= {"eos_token": END, "chat_template": JINJA}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "model_max_length": trained.model.settings.block_size,
        "clean_up_tokenization_spaces": False,
    }
