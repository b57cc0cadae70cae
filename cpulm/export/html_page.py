"""A model as one HTML page that runs it: opened by a double click, on any device with a browser, offline.

The page has an engine of its own, ``page_files/engine.js``, with 400 bytes of WebAssembly for the products.
It computes every block that cpulm trains.
"""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cpulm import __version__
from cpulm.data.marked_text import special_id
from cpulm.data.records.chat import ROLE_TOKENS, end_id
from cpulm.data.splitting import splitting_pattern
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import SettingsError
from cpulm.export.model_card import card_facts
from cpulm.export.trained_model import TrainedModel
from cpulm.pretrained.named_weights import own_weights
from cpulm.settings import ModelSettings
from cpulm.units import format_bytes

PAGE_FILES = Path(__file__).with_name("page_files")
_BLOCK = 32
"""Weights that share a scale, as in llama.cpp's q8_0."""
_ALIGNMENT = 32
_PLACES = re.compile(r"\{\{(\w+)\}\}")


class _View(NamedTuple):
    """What the page does with the model: its controls, their scripts, and what is said of the model."""

    controls: str
    scripts: tuple[str, ...]
    texts: dict[str, str]


_WRITE = _View(
    "write.html",
    ("write.js",),
    {
        "about": "A small language model that continues your text.",
        "limits": "It only continues text: it was not trained to answer questions, and what it writes may "
        "be wrong.",
    },
)
_TALK = _View(
    "talk.html",
    ("talk.js", "answer.js"),
    {
        "about": "A small language model that answers.",
        "limits": "It learned to answer from conversations, and what it says may be wrong.",
    },
)


def write_page(trained: TrainedModel, path: Path) -> None:
    """Write the page to ``path``, matrices in 8 bits, everything else in float32.

    Raises:
        SettingsError: if the page's tokenizer cannot split text as the model's.
    """
    vocabulary = _vocabulary(trained)
    tensors, content = _packed(trained)
    model = {
        "settings": _settings(trained.model.settings),
        "tensors": tensors,
        "vocabulary": vocabulary,
        "facts": card_facts(trained),
        "prompt": trained.checkpoint.settings.sample.prompt,
        "size": format_bytes(len(content)),
    }
    view = _TALK if trained.talks else _WRITE
    fillings = {
        **view.texts,
        "controls": _read(view.controls),
        "version": __version__,
        "title": html.escape(trained.name),
        "style": _read("page.css"),
        "script": "\n".join(map(_read, ("tokenizer.js", "engine.js", *view.scripts, "page.js"))),
        "model": json.dumps(model, separators=(",", ":")).replace("<", r"\u003c"),
        "wasm": base64.b64encode(PAGE_FILES.joinpath("matvec.wasm").read_bytes()).decode(),
        "weights": base64.b64encode(content).decode(),
    }
    with path.open("w", encoding="utf-8", newline="") as file:
        for number, part in enumerate(_PLACES.split(_read("page.html"))):
            file.write(fillings[part] if number % 2 else part)


def _read(name: str) -> str:
    return PAGE_FILES.joinpath(name).read_text(encoding="utf-8")


def _settings(settings: ModelSettings) -> dict[str, Any]:
    derived = {name: getattr(settings, name) for name in ("kv_heads", "head_width", "inner_width")}
    return {**settings.model_dump(mode="json"), **derived}


def _vocabulary(trained: TrainedModel) -> dict[str, Any]:
    tokenizer = trained.tokenizer
    parts, pattern = tokenizer.parts, splitting_pattern(tokenizer.parts)
    if tokenizer.kind == "other" or (tokenizer.kind == "bpe" and pattern is None):
        raise SettingsError(
            "data.tokenizer: the page has no tokenizer that splits text as this one does",
            "export the model with `--to hf`, which takes every tokenizer",
        )
    merges = parts["model"].get("merges", [])
    return {
        "kind": tokenizer.kind,
        "tokens": _tokens(tokenizer),
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "pattern": pattern,
        "special": sorted(tokenizer.special_ids),
        "endOfText": tokenizer.eot_id,
        "startsDocuments": trained.checkpoint.starts_documents,
        "beginsRecords": trained.checkpoint.settings.train.records,
        "chat": _chat(tokenizer) if trained.talks else None,
    }


def _chat(tokenizer: Tokenizer) -> dict[str, int]:
    roles = {str(role): special_id(tokenizer, name) for role, name in ROLE_TOKENS.items()}
    return {**roles, "end": end_id(tokenizer)}


def _tokens(tokenizer: Tokenizer) -> list[str]:
    tokens = [""] * tokenizer.vocab_size
    for token, number in tokenizer.inner.get_vocab().items():
        tokens[number] = token
    return tokens


def _packed(trained: TrainedModel) -> tuple[dict[str, dict[str, int]], bytes]:
    """All tensors in one piece of memory, and where each lies in it."""
    content = bytearray()

    def put(array: npt.NDArray[Any]) -> int:
        content.extend(bytes(-len(content) % _ALIGNMENT))
        at = len(content)
        content.extend(array.tobytes())
        return at

    tensors = {}
    weights = own_weights(trained.model)
    if trained.model.settings.position == "sinusoidal":
        weights["wpe.weight"] = trained.model.sinusoids.numpy()
    for name, weight in weights.items():
        rows = 1 if weight.ndim == 1 else len(weight)
        shape = {"rows": rows, "columns": weight.shape[-1]}
        if weight.ndim == 1 or name == "wpe.weight":
            tensors[name] = {**shape, "at": put(weight.astype("<f4"))}
        else:
            quantized, scales = quantized_rows(weight)
            blocks = quantized.shape[1] // _BLOCK
            places = {"at": put(quantized), "scalesAt": put(scales.astype("<f4"))}
            tensors[name] = {**shape, **places, "blocks": blocks}
    return tensors, bytes(content)


def quantized_rows(
    weight: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round the weights to 8 bits, with one scale for each 32 of a row.

    Args:
        weight: [rows, columns].

    Returns:
        The rounded weights [rows, 32 blocks], zeros behind the columns, and the scales [rows, blocks].
    """
    rows, columns = weight.shape
    padded = np.zeros((rows, -(-columns // _BLOCK) * _BLOCK), dtype=np.float32)
    padded[:, :columns] = weight
    blocks = padded.reshape(rows, -1, _BLOCK)
    scales = np.abs(blocks).max(axis=2) / 127
    divisors = np.where(scales > 0, scales, 1)[:, :, None]
    rounded = np.rint(blocks / divisors).astype(np.int8)
    return rounded.reshape(rows, -1), scales
