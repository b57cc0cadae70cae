"""The two block families give the logits of their implementation in transformers, weight for weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings

VOCAB = 83


def randomised(settings: ModelSettings) -> Transformer:
    """A model none of whose weights stands at a value that hides a mistake, such as a norm weight of 1."""
    model = Transformer(settings, VOCAB).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(0.0, 0.15, generator=generator)
            parameter.copy_(noise if parameter.ndim == 2 else 1.0 + noise)
    return model


def tokens() -> Tensor:
    return torch.randint(VOCAB, (3, 24), generator=torch.Generator().manual_seed(7))


def as_qwen3(model: Transformer) -> Qwen3ForCausalLM:
    s = model.settings
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=s.n_embd,
        intermediate_size=s.inner_width,
        num_hidden_layers=s.n_layer,
        num_attention_heads=s.n_head,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head_width,
        max_position_embeddings=s.block_size,
        rms_norm_eps=s.norm_eps,
        rope_theta=s.rope_theta,
        tie_word_embeddings=s.tie_embeddings,
        attn_implementation="eager",
    )
    weights = {"model.embed_tokens.weight": model.wte.weight, "model.norm.weight": model.norm.weight}
    weights["lm_head.weight"] = model.head_weight
    q, kv = s.n_head * s.head_width, s.kv_heads * s.head_width
    ours = model.state_dict()
    for layer in range(s.n_layer):
        mine, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        qkv = ours[mine + "attn.qkv.weight"].split((q, kv, kv))
        for name, weight in zip(("q_proj", "k_proj", "v_proj"), qkv, strict=True):
            weights[f"{theirs}self_attn.{name}.weight"] = weight
        gate, up = ours[mine + "mlp.gate_up.weight"].chunk(2)
        weights[theirs + "mlp.gate_proj.weight"], weights[theirs + "mlp.up_proj.weight"] = gate, up
        weights[theirs + "mlp.down_proj.weight"] = ours[mine + "mlp.down.weight"]
        weights[theirs + "self_attn.o_proj.weight"] = ours[mine + "attn.out.weight"]
        weights[theirs + "self_attn.q_norm.weight"] = ours[mine + "attn.q_norm.weight"]
        weights[theirs + "self_attn.k_norm.weight"] = ours[mine + "attn.k_norm.weight"]
        weights[theirs + "input_layernorm.weight"] = ours[mine + "attn_norm.weight"]
        weights[theirs + "post_attention_layernorm.weight"] = ours[mine + "mlp_norm.weight"]
    reference = Qwen3ForCausalLM(config).eval()
    reference.load_state_dict(weights)
    return reference


def as_gpt2(model: Transformer, activation: str) -> GPT2LMHeadModel:
    s = model.settings
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=s.block_size,
        n_embd=s.n_embd,
        n_layer=s.n_layer,
        n_head=s.n_head,
        n_inner=s.inner_width,
        activation_function=activation,
        layer_norm_epsilon=s.norm_eps,
        attn_implementation="eager",
    )
    names = {
        "attn_norm": "ln_1",
        "attn.qkv": "attn.c_attn",
        "attn.out": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    ours = model.state_dict()
    weights = {"transformer.wte.weight": ours["wte.weight"], "transformer.wpe.weight": ours["wpe.weight"]}
    weights["lm_head.weight"] = ours["wte.weight"]
    for kind in ("weight", "bias"):
        weights[f"transformer.ln_f.{kind}"] = ours[f"norm.{kind}"]
        for layer in range(s.n_layer):
            for mine, theirs in names.items():
                value = ours[f"blocks.{layer}.{mine}.{kind}"]  # GPT-2 keeps its matrices transposed
                weights[f"transformer.h.{layer}.{theirs}.{kind}"] = value.t() if value.ndim == 2 else value
    reference = GPT2LMHeadModel(config).eval()
    reference.load_state_dict(weights)
    return reference


@pytest.mark.parametrize(
    "shape",
    [
        {"n_head": 4},
        {"n_head": 4, "n_kv_head": 2, "tie_embeddings": False},
        {"n_head": 4, "n_kv_head": 1, "head_dim": 24, "rope_theta": 1e6},
    ],
    ids=["plain", "grouped-untied", "wide-heads"],
)
@torch.inference_mode()
def test_qwen3_block(shape: dict[str, int]) -> None:
    model = randomised(ModelSettings(n_layer=2, n_embd=64, n_inner=96, block_size=32, **shape))
    expected = as_qwen3(model)(tokens()).logits
    torch.testing.assert_close(model(tokens()), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("mlp", "activation"), [("gelu", "gelu_new"), ("gelu_erf", "gelu")])
@torch.inference_mode()
def test_gpt2_block(mlp: str, activation: str) -> None:
    settings = ModelSettings(
        n_layer=2,
        n_head=4,
        n_embd=64,
        block_size=32,
        norm="layernorm",
        norm_eps=1e-5,
        position="learned",
        mlp=mlp,
        bias=True,
        qk_norm=False,
    )
    model = randomised(settings)
    expected = as_gpt2(model, activation)(tokens()).logits
    torch.testing.assert_close(model(tokens()), expected, atol=2e-5, rtol=1e-5)
