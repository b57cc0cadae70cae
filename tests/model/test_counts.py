"""Counts without torch against the real model, and published figures of known models."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from cpulm.model.counts import count, flops_per_token
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings, changed

BASE = ModelSettings(n_layer=3, n_head=4, n_embd=32, block_size=16)
GPT2_SMALL = ModelSettings(
    n_layer=12,
    n_head=12,
    n_embd=768,
    block_size=1024,
    norm="layernorm",
    position="learned",
    mlp="gelu",
    qk_norm=False,
    bias=True,
)


@pytest.mark.parametrize(
    ("norm", "position", "mlp", "bias", "tied", "shape"),
    list(
        itertools.product(
            ("rmsnorm", "layernorm"),
            ("rope", "learned"),
            ("swiglu", "gelu"),
            (False, True),
            (False, True),
            ({}, {"n_kv_head": 2, "qk_norm": False}, {"head_dim": 12, "n_inner": 50}),
        )
    ),
)
def test_equals_the_parameters_of_the_model(
    norm: str, position: str, mlp: str, bias: bool, tied: bool, shape: dict[str, int]
) -> None:
    parts = {"norm": norm, "position": position, "mlp": mlp, "bias": bias, "tie_embeddings": tied}
    settings = changed(BASE, **parts, **shape)
    with torch.device("meta"):
        model = Transformer(settings, 29)
    counts = count(settings, 29)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    outside = ("wte.", "wpe.", "lm_head.")
    inside = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(outside))
    assert counts.non_embedding == inside
    assert sum(counts.by_part.values()) == counts.total


def test_gpt2_small_has_its_published_size() -> None:
    assert count(GPT2_SMALL, 50257).total == 124_439_808


def test_flops_of_gpt2_small() -> None:
    # 6 x (85,056,000 in the blocks and the last norm + 38,597,376 in the head), and half of PaLM's 12 L H Q T
    assert flops_per_token(GPT2_SMALL, 50257) == 6 * (85_056_000 + 38_597_376) + 6 * 12 * 768 * 1024


def test_counting_does_not_load_torch() -> None:
    code = "import sys, cpulm.model.counts; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
