"""A model's adapters as the folder that PEFT, and programs that read its layout, load onto the base model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cpulm.layer_shapes import LinearShape
from cpulm.model.lora import MARK, layers_of_block
from cpulm.pretrained.architecture import Architecture, architecture_of
from cpulm.pretrained.named_weights import names_in
from cpulm.pretrained.save_tensors import save_tensors
from cpulm.settings import ModelSettings
from cpulm.settings.lora_settings import LoraSettings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_adapter(
    weights: Mapping[str, Tensor], settings: ModelSettings, lora: LoraSettings, base: str, folder: Path
) -> None:
    """Write the adapters among ``weights``, those of a model with adapters, into ``folder``.

    Args:
        base: the path or the name of the model that they were trained on.

    Raises:
        SettingsError: if no architecture has the model's block.
    """
    architecture = architecture_of(settings)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for layer in range(settings.n_layer):
        for name, shape in layers_of_block(settings):
            for theirs, a, b in _pairs(architecture, weights, f"blocks.{layer}.{name}", shape, lora):
                tensors[f"base_model.model.{theirs}.lora_A.weight"] = a.contiguous()
                tensors[f"base_model.model.{theirs}.lora_B.weight"] = b.contiguous()
                ranks[".".join(theirs.split(".")[-2:])] = len(a)
    arrays = {name: tensor.numpy(force=True) for name, tensor in tensors.items()}
    save_tensors(arrays, folder / WEIGHTS, {"format": "pt"})
    config = _config(architecture, ranks, lora, base)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _pairs(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    ours: str,
    shape: LinearShape,
    lora: LoraSettings,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The names of the layer's projections in ``architecture`` with their A [rank, inputs] and B.

    GPT-2 has q, k and v in one matrix: their adapters are one of the sum of their ranks, whose B has blocks.
    """
    names = [name.removesuffix(".weight") for name in names_in(architecture, f"{ours}.weight")]
    own = {
        part.name: (weights[f"{ours}{MARK}{part.name}.a"], weights[f"{ours}{MARK}{part.name}.b"])
        for part in shape.parts
        if lora.adapts(part.name)
    }
    if len(names) == len(shape.parts):
        for name, part in zip(names, shape.parts, strict=True):
            if part.name in own:
                a, b = own[part.name]
                yield name, a, b
    elif own:
        joint = torch.zeros(shape.outputs, lora.rank * len(own))
        row = column = 0
        for part in shape.parts:
            if part.name in own:
                joint[row : row + part.rows, column : column + lora.rank] = own[part.name][1]
                column += lora.rank
            row += part.rows
        yield names[0], torch.cat([a for a, _ in own.values()]), joint


def _config(
    architecture: Architecture, ranks: Mapping[str, int], lora: LoraSettings, base: str
) -> dict[str, Any]:
    joint = {name: rank for name, rank in ranks.items() if rank != lora.rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(ranks),
        "rank_pattern": joint,
        "alpha_pattern": {name: lora.scale * rank for name, rank in joint.items()},
        "bias": "none",
        "fan_in_fan_out": architecture == "gpt2",
        "inference_mode": True,
    }
