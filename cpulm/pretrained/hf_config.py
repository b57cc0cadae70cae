"""A ``config.json`` of Hugging Face transformers as the settings of a model, for versions 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cpulm.errors import DataError, SettingsError
from cpulm.layer_shapes import ACTIVATIONS
from cpulm.pretrained.architecture import Architecture
from cpulm.settings import ModelSettings
from cpulm.settings.resolve_settings import validate
from cpulm.typed_json import from_record, shown

_FAMILIES: Mapping[str, Architecture] = {
    "qwen3": "qwen3",
    "llama": "llama",
    "qwen2": "llama",
    "gpt2": "gpt2",
}
_KNOWN = "cpulm reads qwen3, llama, qwen2 and gpt2"
GPT2_ACTIVATIONS = {traits.in_transformers: name for name, traits in ACTIVATIONS.items() if not traits.gated}
GPT2_ACTIVATIONS["gelu_pytorch_tanh"] = GPT2_ACTIVATIONS["gelu_new"]


@dataclass(frozen=True)
class ModelConfig:
    """What a ``config.json`` says; ``vocab_size`` counts the rows of the embedding."""

    architecture: Architecture
    settings: ModelSettings
    vocab_size: int


@dataclass
class _Rope:
    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None


@dataclass
class _LlamaConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False


@dataclass
class _Gpt2Config:
    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False


def parse_config(config: Any) -> ModelConfig:
    """Check a parsed ``config.json`` and translate it.

    Raises:
        DataError: if it is none, or of a model that cpulm does not compute; names what.
    """
    kind: Any = config.get("model_type") if isinstance(config, dict) else None
    family = _FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise DataError(f"its architecture is {shown(kind)}", _KNOWN)
    if config.get("quantization_config") is not None:
        raise DataError("its weights are quantized (quantization_config)", "give the model in bf16 or fp32")
    try:
        if family == "gpt2":
            return _gpt2(from_record(_Gpt2Config, config))
        return _llama(from_record(_LlamaConfig, config), kind)
    except ValueError as error:
        raise DataError(f"in config.json {error}") from error
    except SettingsError as error:
        raise DataError(f"in config.json {error.message}", error.hint) from error


def _llama(config: _LlamaConfig, kind: str) -> ModelConfig:
    _require("hidden_act", config.hidden_act, "silu")
    _require("use_sliding_window", config.use_sliding_window, False)
    rope = config.rope_parameters or config.rope_scaling or _Rope()
    _require("rope_type", rope.rope_type or rope.type or "default", "default")
    _require("partial_rotary_factor", rope.partial_rotary_factor or 1.0, 1.0)
    values = {
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_kv_head": config.num_key_value_heads,
        "n_embd": config.hidden_size,
        "head_dim": config.head_dim or (128 if kind == "qwen3" else None),
        "n_inner": config.intermediate_size,
        "block_size": config.max_position_embeddings,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": rope.rope_theta or config.rope_theta or 10_000.0,
        "qk_norm": kind == "qwen3",
        # All or none of our layers have biases: those that the model lacks are zeros.
        "bias": kind == "qwen2" or config.attention_bias or config.mlp_bias,
        "tie_embeddings": config.tie_word_embeddings,
    }
    return ModelConfig(_FAMILIES[kind], validate({"model": values}).model, config.vocab_size)


def _gpt2(config: _Gpt2Config) -> ModelConfig:
    _require("scale_attn_weights", config.scale_attn_weights, True)
    _require("scale_attn_by_inverse_layer_idx", config.scale_attn_by_inverse_layer_idx, False)
    _require("add_cross_attention", config.add_cross_attention, False)
    if config.activation_function not in GPT2_ACTIVATIONS:
        _require("activation_function", config.activation_function, " or ".join(GPT2_ACTIVATIONS))
    values = {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.n_inner,
        "block_size": config.n_positions,
        "norm": "layernorm",
        "norm_eps": config.layer_norm_epsilon,
        "position": "learned",
        "mlp": GPT2_ACTIVATIONS[config.activation_function],
        "qk_norm": False,
        "bias": True,
        "tie_embeddings": config.tie_word_embeddings,
    }
    return ModelConfig("gpt2", validate({"model": values}).model, config.vocab_size)


def _require(name: str, value: object, allowed: object) -> None:
    """Refuse what our model would compute otherwise."""
    if value != allowed:
        raise DataError(f"in config.json {name} is {shown(value)}", f"cpulm computes {shown(allowed)}")
