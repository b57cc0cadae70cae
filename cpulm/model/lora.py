"""Low-rank adapters: small matrices that are trained beside the frozen weights of a model.

LoRA (Hu et al., 2021, https://arxiv.org/abs/2106.09685): to a layer's ``W x`` is added
``(alpha / rank) B A x`` with A [rank, inputs] and B [outputs, rank]. B begins as zeros, so the model begins
as it was. Projections that share a matrix, such as q, k and v, have an adapter each, as in other programs.

This module alone gives layers adapters; :class:`cpulm.model.modules.Linear` adds what they compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from cpulm.layer_shapes import LinearShape
from cpulm.model import fused
from cpulm.model.transformer import Block, Transformer
from cpulm.settings import ModelSettings
from cpulm.settings.lora_settings import LoraSettings

MARK = ".adapter."
"""What the names of adapters' matrices have between the layer's name and the projection's."""


class LowRank(nn.Module):
    """The adapter of one projection, ``x -> B A x``; its matrices begin as zeros."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, rank))


class Adapter(nn.Module):
    """The adapters of a linear layer: they add to its outputs [..., outputs] what they make of its inputs."""

    def __init__(self, shape: LinearShape, lora: LoraSettings) -> None:
        super().__init__()
        self.scale = lora.scale
        self.rows: list[tuple[int, LowRank | None]] = []
        for part in shape.parts:
            low_rank = LowRank(shape.inputs, part.rows, lora.rank) if lora.adapts(part.name) else None
            if low_rank is not None:
                self.add_module(part.name, low_rank)
            self.rows.append((part.rows, low_rank))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        parts = [(rows, None if one is None else (one.a, one.b)) for rows, one in self.rows]
        return fused.add_low_rank(y, x, parts, self.scale)


def layers_of_block(settings: ModelSettings) -> Iterator[tuple[str, LinearShape]]:
    """The names in a block, and the shapes, of its linear layers."""
    layers = settings.linear_layers
    first = "mlp.gate_up" if len(layers.up.parts) == 2 else "mlp.up"
    yield from zip(("attn.qkv", "attn.out", first, "mlp.down"), layers, strict=True)


@torch.no_grad()
def adapt(model: Transformer, lora: LoraSettings, seed: int) -> None:
    """Freeze the weights of ``model`` and give its linear layers adapters, drawn from ``seed`` alone.

    A is uniform up to ``1 / sqrt(inputs)``, as PEFT draws it.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        assert isinstance(block, Block)
        for name, shape in layers_of_block(model.settings):
            if not any(lora.adapts(part.name) for part in shape.parts):
                continue
            adapter = Adapter(shape, lora)
            for low_rank in adapter.children():
                assert isinstance(low_rank, LowRank)
                bound = 1 / math.sqrt(shape.inputs)
                low_rank.a.copy_(torch.empty(low_rank.a.shape).uniform_(-bound, bound, generator=generator))
            block.get_submodule(name).adapter = adapter


def merged(weights: Mapping[str, Tensor], settings: ModelSettings, lora: LoraSettings) -> dict[str, Tensor]:
    """The weights of the model without adapters that computes the same: ``W + (alpha / rank) B A``.

    Args:
        weights: of a model with adapters, by the names in its state.
    """
    result = {name: weight for name, weight in weights.items() if MARK not in name}
    for layer in range(settings.n_layer):
        for name, shape in layers_of_block(settings):
            full = f"blocks.{layer}.{name}"
            rows = 0
            weight = result[f"{full}.weight"].clone()
            for part in shape.parts:
                if lora.adapts(part.name):
                    a, b = (weights[f"{full}{MARK}{part.name}.{matrix}"] for matrix in "ab")
                    weight[rows : rows + part.rows].addmm_(b, a, alpha=lora.scale)
                rows += part.rows
            result[f"{full}.weight"] = weight
    return result
