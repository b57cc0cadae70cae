"""Reads a model's folder of Hugging Face transformers: ``config.json``, weights, ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError
from cpulm.pretrained.hf_config import parse_config
from cpulm.pretrained.named_weights import is_transposed
from cpulm.pretrained.pretrained_model import (
    OwnWeights,
    PretrainedModel,
    Shape,
    fitted_to_tokenizer,
    own_shapes,
)
from cpulm.pretrained.recognize import CONFIG
from cpulm.regular_file import open_regular, read_regular
from cpulm.typed_json import parse_json, shown

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
INDEX = f"{WEIGHTS}.index.json"
_MOST_JSON_BYTES = 1 << 26
_TYPES = {"F64", "F32", "F16", "BF16"}
_NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Ends of names of constants that older versions of transformers saved too."""


def read_hf_folder(folder: Path) -> PretrainedModel:
    """Read a model; its weights are read from the files when they are asked for.

    Raises:
        DataError: if a file is missing or damaged, or the model is of an architecture that cpulm does not
            compute.
    """
    config = parse_config(_json(folder / CONFIG))
    if not (folder / TOKENIZER).exists():
        raise DataError(
            f"it has no {TOKENIZER}",
            "let transformers write one: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    tokenizer = Tokenizer.from_file(folder / TOKENIZER)
    files = _Tensors(folder)
    first = "transformer." if config.architecture == "gpt2" else "model."
    names = {(name if name.startswith((first, "lm_head.")) else first + name): name for name in files}
    if config.settings.tie_embeddings:  # saved twice by some
        names.pop("lm_head.weight", None)

    def transposed(name: str) -> bool:
        return is_transposed(config.architecture, name, len(files.shapes[names[name]]))

    def shape_of(name: str) -> Shape:
        shape = files.shapes[names[name]]
        return shape[::-1] if transposed(name) else shape

    def read(name: str) -> Tensor:
        weight = files[names[name]].float()
        return weight.T.contiguous() if transposed(name) else weight

    shapes = own_shapes(config.settings, config.vocab_size)
    weights = OwnWeights(config.settings, shapes, config.architecture, names, read)
    weights.check(shape_of)
    return fitted_to_tokenizer(config.settings, tokenizer, weights, config.vocab_size)


class _Tensors(dict[str, Any]):
    """The open files of a folder's weights by the names of the tensors in them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.shapes: dict[str, Shape] = {}
        for path in _files_of(folder):
            opened = _opened(path)
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                if name.endswith(_NOT_WEIGHTS):
                    continue
                described = opened.get_slice(name)
                if described.get_dtype() not in _TYPES:
                    kind = described.get_dtype()
                    raise DataError(f"{path.name} holds {name} as {kind}", "give it in bf16, fp16 or fp32")
                if name in self:
                    raise DataError(f"two of its files hold {name}")
                self.shapes[name] = tuple(described.get_shape())
                dict.__setitem__(self, name, opened)

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = super().__getitem__(name).get_tensor(name)
        if not bool(torch.isfinite(found).all()):
            raise DataError(f"the weight {name} is not finite", "the file is damaged: download it again")
        return found


def _opened(path: Path) -> Any:
    try:
        open_regular(path).close()
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path.name} cannot be read: {why}", "is it complete? Download it again") from error


def _files_of(folder: Path) -> list[Path]:
    """The files of the weights: one, or those of the index."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        index = _json(folder / INDEX)
        places = index.get("weight_map") if isinstance(index, Mapping) else None
        if not isinstance(places, dict) or not places:
            raise DataError(f"{INDEX} has no weight_map")
        for name in places.values():
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise DataError(f"{INDEX} names {shown(name)}, which is not a file of weights beside it")
        return [folder / name for name in sorted(set(places.values()))]
    if pickled := sorted(folder.glob("*.bin")):
        raise DataError(
            f"its weights are {pickled[0].name}, a pickle, which can run code when it is read",
            "if you trust it, let transformers convert it: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    raise DataError(f"it has no {WEIGHTS}", "download the whole folder")


def _json(path: Path) -> Any:
    try:
        return parse_json(read_regular(path, _MOST_JSON_BYTES))
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path.name} is not JSON: {error}") from error
