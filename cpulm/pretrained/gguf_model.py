"""Reads a model from a GGUF file, as llama.cpp loads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpulm.errors import DataError, SettingsError
from cpulm.pretrained.architecture import Architecture
from cpulm.pretrained.gguf_header import GgufHeader, GgufTensor, read_header
from cpulm.pretrained.gguf_names import gguf_name, in_halves, require_gguf, rotated_heads
from cpulm.pretrained.gguf_tokenizer import tokenizer_of
from cpulm.pretrained.hf_config import GPT2_ACTIVATIONS
from cpulm.pretrained.named_weights import Array, names_in
from cpulm.pretrained.pretrained_model import OwnWeights, PretrainedModel, fitted_to_tokenizer, own_shapes
from cpulm.settings import ModelSettings
from cpulm.settings.resolve_settings import validate
from cpulm.typed_json import shown

_FAMILIES: Mapping[str, Architecture] = {
    "qwen3": "qwen3",
    "llama": "llama",
    "qwen2": "llama",
    "gpt2": "gpt2",
}
_EMBEDDING, _SCALED_ROPE = "token_embd.weight", "rope_freqs.weight"


def read_gguf(path: Path) -> PretrainedModel:
    """Read a model; its weights are read from the file when they are asked for, as float32.

    Raises:
        DataError: if the file is damaged, or of an architecture, a type or a tokenizer that cpulm does not
            know.
        SettingsError: if the package gguf is not installed.
    """
    require_gguf()
    header = read_header(path)
    kind = header.values.get("general.architecture")
    name = kind.decode("utf-8", "replace") if isinstance(kind, bytes) else None
    family = _FAMILIES.get(name or "")
    if family is None or name is None:
        raise DataError(f"its architecture is {shown(name)}", "cpulm reads qwen3, llama, qwen2 and gpt2")
    settings = _settings(header, name, family)
    if _EMBEDDING not in header.tensors or len(header.tensors[_EMBEDDING].shape) != 2:
        raise DataError(f"it has no matrix {_EMBEDDING}")
    rows = header.tensors[_EMBEDDING].shape[0]
    shapes = own_shapes(settings, rows)
    name_of = gguf_name(family, settings.n_layer)
    theirs = {name_of(name): name for ours in shapes for name in names_in(family, ours)}
    there = {theirs.get(name, name): tensor for name, tensor in header.tensors.items()}
    content = _Content(path, header)

    def read(name: str) -> Tensor:
        weight = content.read(name, there[name])
        heads = rotated_heads(family, name, settings)
        return torch.from_numpy(in_halves(weight, heads) if heads else weight)

    weights = OwnWeights(settings, shapes, family, there, read)
    weights.check(lambda name: there[name].shape)
    return fitted_to_tokenizer(settings, tokenizer_of(header.values), weights, rows)


class _Content:
    """The tensors of a file, converted to float32."""

    def __init__(self, path: Path, header: GgufHeader) -> None:
        self._bytes = np.memmap(path, mode="r")
        self._gguf = require_gguf()
        for name, tensor in header.tensors.items():
            end = tensor.begin + self._size(name, tensor)
            if end > header.size_bytes:
                raise DataError(
                    f"its weight {name} ends at byte {end:,} of {header.size_bytes:,}",
                    "is it complete? Download it again",
                )

    def read(self, name: str, tensor: GgufTensor) -> Array:
        raw = self._bytes[tensor.begin : tensor.begin + self._size(name, tensor)]
        kind = self._gguf.GGMLQuantizationType(tensor.kind)
        if kind.name in ("F32", "F16"):
            weight = raw.view(f"<f{2 if kind.name == 'F16' else 4}").astype(np.float32)
        else:
            weight = self._gguf.quants.dequantize(raw.reshape(*tensor.shape[:-1], -1), kind)
        if not np.isfinite(weight).all():
            raise DataError(f"the weight {name} is not finite", "the file is damaged: download it again")
        found: Array = weight.reshape(tensor.shape)
        return found

    def _size(self, name: str, tensor: GgufTensor) -> int:
        """Bytes of a tensor.

        Raises:
            DataError: if its type is not one that can be read.
        """
        kinds, quants = self._gguf.GGMLQuantizationType, self._gguf.quants
        known = {kinds.F32, kinds.F16, *quants._type_traits}
        if tensor.kind not in known:
            names = {kind.value: kind.name for kind in kinds}
            raise DataError(
                f"its weight {name} is of type {names.get(tensor.kind, tensor.kind)}",
                "cpulm reads f32, f16, bf16, q8_0 and the other types that the package gguf can",
            )
        block, size = self._gguf.GGML_QUANT_SIZES[kinds(tensor.kind)]
        elements = math.prod(tensor.shape)
        if not tensor.shape or tensor.shape[-1] % block:
            raise DataError(f"its weight {name} has rows that are no multiple of {block}")
        return elements // int(block) * int(size)


def _settings(header: GgufHeader, name: str, family: Architecture) -> ModelSettings:
    def value(key: str, default: Any = None) -> Any:
        found = header.values.get(f"{name}.{key}", default)
        if found is None:
            raise DataError(f"it does not say {name}.{key}")
        return found

    if value("rope.scaling.type", b"none") != b"none":
        raise DataError(
            f"its {name}.rope.scaling.type is {shown(value('rope.scaling.type'))}", "cpulm has none"
        )
    if _SCALED_ROPE in header.tensors:
        raise DataError("its rotary embedding is scaled as that of Llama 3.1", "cpulm computes the plain one")
    heads = value("attention.head_count")
    values = {
        "n_layer": value("block_count"),
        "n_head": heads,
        "n_embd": value("embedding_length"),
        "n_inner": value("feed_forward_length"),
        "block_size": value("context_length"),
        "tie_embeddings": "output.weight" not in header.tensors,
        "bias": "blk.0.attn_q.bias" in header.tensors,
        "qk_norm": family == "qwen3",
    }
    if family == "gpt2":
        values |= {
            "norm": "layernorm",
            "position": "learned",
            "mlp": GPT2_ACTIVATIONS["gelu_new"],
            "bias": True,
        }
        values["norm_eps"] = value("attention.layer_norm_epsilon")
    else:
        values["n_kv_head"] = value("attention.head_count_kv", heads)
        values["head_dim"] = value("attention.key_length", values["n_embd"] // heads)
        values["norm_eps"] = value("attention.layer_norm_rms_epsilon")
        values["rope_theta"] = value("rope.freq_base", 10_000.0)
    try:
        return validate({"model": values}).model
    except SettingsError as error:
        raise DataError(f"in its metadata {error.message}", error.hint) from error
