"""The weights of a model under the names that Hugging Face transformers gives them, in both directions.

Matrices are [outputs, inputs], as torch's linear layers have them, for every architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cpulm.model.transformer import Transformer
from cpulm.pretrained.architecture import Architecture
from cpulm.settings import ModelSettings

Array: TypeAlias = npt.NDArray[np.float32]
Weights: TypeAlias = dict[str, Array]

_GPT2_NAMES = {
    "wte": ("transformer.wte",),
    "wpe": ("transformer.wpe",),
    "attn_norm": ("transformer.h.{}.ln_1",),
    "attn.qkv": ("transformer.h.{}.attn.c_attn",),
    "attn.out": ("transformer.h.{}.attn.c_proj",),
    "mlp_norm": ("transformer.h.{}.ln_2",),
    "mlp.up": ("transformer.h.{}.mlp.c_fc",),
    "mlp.down": ("transformer.h.{}.mlp.c_proj",),
    "norm": ("transformer.ln_f",),
    "lm_head": ("lm_head",),
}
_LLAMA_NAMES = {
    "wte": ("model.embed_tokens",),
    "attn_norm": ("model.layers.{}.input_layernorm",),
    "attn.q_norm": ("model.layers.{}.self_attn.q_norm",),
    "attn.k_norm": ("model.layers.{}.self_attn.k_norm",),
    "attn.qkv": tuple(f"model.layers.{{}}.self_attn.{name}_proj" for name in "qkv"),
    "attn.out": ("model.layers.{}.self_attn.o_proj",),
    "mlp_norm": ("model.layers.{}.post_attention_layernorm",),
    "mlp.gate_up": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    "mlp.down": ("model.layers.{}.mlp.down_proj",),
    "norm": ("model.norm",),
    "lm_head": ("lm_head",),
}
"""By the names of our modules, those of theirs whose rows stand one below the other in ours."""

_OURS = re.compile(r"(?:blocks\.(?P<layer>\d+)\.)?(?P<module>.+)\.(?P<kind>weight|bias)")


def names_in(architecture: Architecture, ours: str) -> list[str]:
    """The names in ``architecture`` of the parts of our weight ``ours``."""
    found = _OURS.fullmatch(ours)
    assert found is not None, ours
    names = (_GPT2_NAMES if architecture == "gpt2" else _LLAMA_NAMES)[found["module"]]
    return [f"{name.format(found['layer'])}.{found['kind']}" for name in names]


def rows_of_parts(ours: str, rows: int, settings: ModelSettings, parts: int) -> list[int]:
    """How many of the ``rows`` of our weight ``ours`` each of its ``parts`` has."""
    if ".qkv." in ours and parts == 3:
        kv = settings.kv_heads * settings.head_width
        return [rows - 2 * kv, kv, kv]
    return [rows // parts] * parts


def is_transposed(architecture: Architecture, name: str, dimensions: int) -> bool:
    """Whether files of transformers have the weight as [inputs, outputs]: GPT-2's in its blocks."""
    return architecture == "gpt2" and ".h." in name and dimensions == 2


def own_weights(model: Transformer) -> Weights:
    """Return the model's weights by the names of its own parameters; the arrays share their memory."""
    return {name: weight.numpy() for name, weight in model.state_dict().items()}


def named_weights(model: Transformer, architecture: Architecture) -> Weights:
    """Return the model's weights by the names of ``architecture`` in transformers."""
    settings = model.settings
    named: Weights = {}
    for ours, weight in own_weights(model).items():
        names = names_in(architecture, ours)
        borders = np.cumsum(rows_of_parts(ours, len(weight), settings, len(names)))[:-1]
        named.update(zip(names, np.split(weight, borders), strict=True))
    if architecture == "gpt2":
        named |= dict(_only_in_gpt2(model, named))
    return named


def _only_in_gpt2(model: Transformer, named: Weights) -> Iterator[tuple[str, Array]]:
    """GPT-2 always has biases, and positions that are weights."""
    for name, weight in named.items():
        bias = f"{name.removesuffix('weight')}bias"
        if (".h." in name or ".ln_f." in name) and name.endswith("weight") and bias not in named:
            yield bias, np.zeros(len(weight), dtype=np.float32)
    settings = model.settings
    if settings.position != "learned":
        shape = settings.block_size, settings.n_embd
        fixed = settings.position == "sinusoidal"
        yield "transformer.wpe.weight", model.sinusoids.numpy() if fixed else np.zeros(shape, np.float32)
