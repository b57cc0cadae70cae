"""Which blocks other programs know, and what a message says about the others."""

from __future__ import annotations

from typing import Any

import pytest
from small_models import GPT2

from cpulm.errors import SettingsError
from cpulm.preset_files import preset_names
from cpulm.pretrained.architecture import architecture_of
from cpulm.settings import ModelSettings
from cpulm.settings.resolve_settings import resolve


@pytest.mark.parametrize(
    ("values", "architecture"),
    [
        ({}, "qwen3"),
        ({"n_kv_head": 2, "head_dim": 24, "tie_embeddings": False, "dropout": 0.1}, "qwen3"),
        ({"qk_norm": False}, "llama"),
        ({"qk_norm": False, "bias": True}, "llama"),
        (GPT2, "gpt2"),
        ({**GPT2, "bias": False}, "gpt2"),
        *(({**GPT2, "position": position}, "gpt2") for position in ("sinusoidal", "none")),
        *(({**GPT2, "mlp": mlp}, "gpt2") for mlp in ("gelu_erf", "relu", "relu2")),
    ],
)
def test_blocks_that_others_know(values: dict[str, Any], architecture: str) -> None:
    assert architecture_of(ModelSettings.model_validate(values)) == architecture


@pytest.mark.parametrize(
    ("values", "found", "wanted"),
    [
        ({"mlp": "relu2"}, "model.mlp = relu2", "Qwen3, with mlp = swiglu"),
        ({"bias": True}, "model.bias = true", "Qwen3, with bias = false"),
        ({"position": "none"}, "model.position = none", "Qwen3, with position = rope"),
        ({"norm": "layernorm"}, "model.norm = layernorm", "Qwen3, with norm = rmsnorm"),
        ({**GPT2, "n_kv_head": 2}, "model.n_kv_head = 2", "GPT-2, with n_kv_head = n_head"),
        ({**GPT2, "head_dim": 32}, "model.head_dim = 32", "GPT-2, with head_dim = n_embd / n_head"),
        (
            {**GPT2, "qk_norm": True, "mlp": "swiglu"},
            "model.mlp = swiglu, model.qk_norm = true",
            "GPT-2, with mlp = gelu or gelu_erf or relu or relu2, qk_norm = false",
        ),
    ],
)
def test_other_blocks_name_the_settings_in_the_way(values: dict[str, Any], found: str, wanted: str) -> None:
    with pytest.raises(SettingsError) as error:
        architecture_of(ModelSettings.model_validate(values))
    assert error.value.message.endswith(f"has this block: {found}")
    assert wanted in error.value.hint


def test_every_preset_but_one_can_be_exported() -> None:
    """As the help of ``cpulm export`` says."""
    without = []
    for preset in preset_names():
        try:
            architecture_of(resolve(environ={}, preset=preset).model)
        except SettingsError:
            without.append(preset)
    assert without == ["nanochat-d4"]
