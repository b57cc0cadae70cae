"""Adapters in PEFT's layout: loaded onto the base model they give the run's model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import hf_model, saved
from safetensors.torch import load_file
from torch import Tensor

from cpulm.model.lora import adapt, merged
from cpulm.model.transformer import Transformer
from cpulm.pretrained.peft_adapter import CONFIG, WEIGHTS, write_adapter
from cpulm.pretrained.read_pretrained import read_pretrained
from cpulm.settings.lora_settings import LoraSettings

LORA = LoraSettings(rank=2, alpha=8.0)
SOME = LoraSettings(rank=3, alpha=6.0, projections=["q", "v", "down"])
TOKENS = torch.arange(12).remainder(9).add(5).view(1, 12)


def written(kind: str, lora: LoraSettings, folder: Path) -> Tensor:
    """Write adapters for transformers' model ``kind``; the logits of our model with them merged."""
    found = read_pretrained(saved(hf_model(kind), folder / "base"))
    model = Transformer(found.settings, found.tokenizer.vocab_size)
    model.load_state_dict(dict(found.weights))
    adapt(model, lora, 3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.1, generator=generator))
    (folder / "adapter").mkdir()
    write_adapter(model.state_dict(), found.settings, lora, "base", folder / "adapter")
    without = Transformer(found.settings, found.tokenizer.vocab_size).eval()
    without.load_state_dict(merged(model.state_dict(), found.settings, lora))
    with torch.no_grad():
        logits: Tensor = without(TOKENS)
    return logits


def scale(config: dict[str, Any], module: str) -> float:
    """What PEFT multiplies an adapter by: a pattern of ranks and alphas precedes the common ones."""
    for pattern, rank in config["rank_pattern"].items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return float(config["alpha_pattern"][pattern] / rank)
    return float(config["lora_alpha"] / config["r"])


@pytest.mark.parametrize("lora", [LORA, SOME], ids=["all", "some"])
@pytest.mark.parametrize("kind", ["qwen3", "untied llama", "gpt2"])
def test_the_base_model_with_the_adapters_is_the_model(kind: str, lora: LoraSettings, tmp_path: Path) -> None:
    expected = written(kind, lora, tmp_path)
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    adapters = load_file(tmp_path / "adapter" / WEIGHTS)
    theirs = hf_model(kind)
    state = theirs.state_dict()
    changed = set()
    for key in [name for name in adapters if name.endswith(".lora_A.weight")]:
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = adapters[key.replace("lora_A", "lora_B")]
        delta = scale(config, module) * (b @ adapters[key])
        state[f"{module}.weight"] += delta.T if config["fan_in_fan_out"] else delta
        changed.add(module.split(".", 3)[-1])
    assert {".".join(name.split(".")[-2:]) for name in changed} == set(config["target_modules"])
    theirs.load_state_dict(state)
    with torch.no_grad():
        found = theirs(TOKENS).logits[..., : expected.size(-1)]
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("lora", [LORA, SOME], ids=["all", "some"])
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_peft_loads_them(kind: str, lora: LoraSettings, tmp_path: Path) -> None:
    import peft  # which takes seconds

    expected = written(kind, lora, tmp_path)
    model: Any = peft.PeftModel.from_pretrained(hf_model(kind), tmp_path / "adapter")
    with torch.no_grad():
        found = model(TOKENS).logits[..., : expected.size(-1)]
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
