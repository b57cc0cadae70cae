"""GGUF files are read back as they were exported, and hostile ones are refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from hf_models import hf_model, saved
from llama_cpp import LlamaCpp
from small_exports import BLOCK_SIZE, SmallTrained
from small_exports import trained as trained
from texts_of_all_kinds import texts

from cpulm.checkpoints.load_model import load_model
from cpulm.errors import DataError
from cpulm.export.export_model import ExportRequest, export_model
from cpulm.pretrained.gguf_header import read_header
from cpulm.pretrained.gguf_tokenizer import tokenizer_of
from cpulm.pretrained.read_pretrained import read_pretrained

Trained = Callable[[str], SmallTrained]


def copied(ours: SmallTrained, quantization: str = "f32") -> Path:
    """The exported file under a name that says what it is."""
    path = ours.run / f"{quantization}.gguf"
    if not path.exists():
        path.hardlink_to(ours.exported("gguf", "--quantize", quantization))
    return path


@pytest.mark.parametrize("name", ["qwen3-byte", "qwen3-word", "llama-bpe", "gpt2-char"])
@torch.inference_mode()
def test_an_export_comes_back(name: str, trained: Trained) -> None:
    ours = trained(name)
    model, tokenizer, _ = load_model(copied(ours), warn=pytest.fail)
    ids = torch.tensor([ours.tokenizer.encode("    raise DataError(path)\n" * 9)[:100]])
    atol = 2e-3 if name == "gpt2-char" else 0  # gelu_erf becomes gelu
    torch.testing.assert_close(model(ids), ours.model(ids), atol=atol, rtol=0)
    assert tokenizer.kind == ours.tokenizer.kind
    assert tokenizer.eot_id == ours.tokenizer.eot_id
    assert json.loads(tokenizer.to_json()) == json.loads(ours.tokenizer.to_json())
    for text in texts(200):
        if tokenizer.kind != "char":
            assert tokenizer.encode(text) == ours.tokenizer.encode(text)


@pytest.mark.parametrize(("quantization", "most"), [("f16", 0.02), ("q8_0", 0.5), ("q4_0", 3)])
@torch.inference_mode()
def test_quantized_weights_are_nearly_those(quantization: str, most: float, trained: Trained) -> None:
    ours = trained("llama-bpe")
    model, _, _ = load_model(copied(ours, quantization), warn=pytest.fail)
    ids = torch.tensor([ours.prompt()])
    error = (model(ids) - ours.model(ids)).abs().max().item()
    assert 0 < error < most


def test_a_model_of_transformers_goes_through_llama_cpp(tmp_path: Path) -> None:
    """Its tokens are those of llama.cpp, and so is its greedy text."""
    exported = export_model(
        ExportRequest(saved(hf_model("qwen3"), tmp_path / "hf"), "gguf", tmp_path / "m.gguf", "f32"), print
    )
    model, tokenizer, _ = load_model(exported.path, warn=pytest.fail)
    theirs = LlamaCpp(exported.path, BLOCK_SIZE)
    for text in texts(100):
        assert theirs.encode(text) == tokenizer.encode(text)
    ids = tokenizer.encode("def hf_model(name)")
    with torch.inference_mode():
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert theirs.greedy(ids[:-8], 8) == ids[-8:]


def test_smollm_splits_digits(trained: Trained) -> None:
    """SmolLM2's tokenizer is GPT-2's with every digit apart."""
    values = read_header(copied(trained("gpt2-bpe"))).values
    tokenizer = tokenizer_of({**values, "tokenizer.ggml.pre": b"smollm"})
    assert [tokenizer.decode([token]) for token in tokenizer.encode("12")] == ["1", "2"]


def changed_value(content: bytes, key: str, old: bytes, new: bytes) -> bytes:
    """The file with another value behind ``key`` and its type."""
    at = content.index(key.encode()) + len(key) + 4
    assert content[at : at + len(old)] == old
    return content[:at] + new + content[at + len(old) :]


def number(value: int) -> bytes:
    return struct.pack("<I", value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:200], "its header is damaged: 26 entries in 200 bytes"),
        (lambda content: content[:-50], "is it complete"),
        (lambda content: b"GGML" + content[4:], "it is not a GGUF file"),
        (lambda content: content[:4] + number(9) + content[8:], "its header is damaged: version 9"),
        (lambda content: content[:8] + b"\xff" * 8 + content[16:], "its header is damaged"),
        (lambda content: content[:16] + b"\xff" * 7 + content[23:], "its header is damaged"),
        (lambda content: content.replace(b"llama", b"mamba"), "its architecture is 'mamba'"),
        (
            lambda content: changed_value(content, "llama.block_count", number(2), number(1)),
            "it has a weight blk.1.attn_k.bias, which a Llama of its settings does not have",
        ),
        (
            lambda content: changed_value(content, "llama.block_count", number(2), number(2**31)),
            "in its metadata model.n_layer = 2147483648: must be at most 10,000",
        ),
        (
            lambda content: changed_value(content, "llama.feed_forward_length", number(192), number(224)),
            "and its settings make it [224, 64]",
        ),
        (lambda content: content.replace(b"qwen2", b"vikin"), "its tokenizer splits text as 'vikin'"),
        (
            lambda content: content.replace(b"blk.0.attn_q.bias", b"rope_freqs.weight"),
            "its rotary embedding is scaled as that of Llama 3.1",
        ),
    ],
)
def test_hostile_files(
    damage: Callable[[bytes], bytes], message: str, trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(damage(copied(trained("llama-bpe")).read_bytes()))
    with pytest.raises(DataError) as error:
        read_pretrained(path)
    assert message in f"{error.value.message} {error.value.hint}"


def test_an_unknown_type_is_named(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "typed.gguf"
    content = copied(trained("llama-bpe")).read_bytes()
    name = b"blk.0.attn_k.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8
    assert content[at : at + 4] == number(gguf.GGMLQuantizationType.F32)
    path.write_bytes(content[:at] + number(gguf.GGMLQuantizationType.I8) + content[at + 4 :])
    with pytest.raises(DataError, match=r"its weight blk\.0\.attn_k\.weight is of type I8"):
        read_pretrained(path)
