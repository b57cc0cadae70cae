"""llama.cpp loads an exported GGUF file, splits text the same way and writes the same text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llama_cpp import LlamaCpp
from small_exports import BLOCK_SIZE, KINDS, SmallTrained
from texts_of_all_kinds import texts

Trained = Callable[[str], SmallTrained]


def engine(ours: SmallTrained, quantization: str) -> LlamaCpp:
    return LlamaCpp(ours.exported("gguf", "--quantize", quantization), BLOCK_SIZE)


@pytest.mark.parametrize("name", KINDS)
def test_greedy_text_in_f32(name: str, trained: Trained) -> None:
    ours = trained(name)
    assert engine(ours, "f32").greedy(ours.prompt(), 40) == ours.greedy(40)


def readable(ours: SmallTrained, text: str) -> str:
    """What of ``text`` llama.cpp promises to split in the same way: see the limits of each vocabulary."""
    known = ours.tokenizer.parts["model"]["vocab"]
    if ours.tokenizer.kind == "char":
        return "".join(character for character in text if character in known)
    if ours.tokenizer.kind == "word":
        return " ".join(word for word in text.split() if word in known)
    return text


@pytest.mark.parametrize("name", ["qwen3-bpe", "qwen3-byte", "qwen3-char", "qwen3-word"])
def test_tokenizers_agree(name: str, trained: Trained) -> None:
    ours = trained(name)
    theirs = engine(ours, "f32")
    seen = 0
    for text in [*texts(1000), "the end-of-text token is <|endoftext|> ", "return self or None"]:
        text = readable(ours, text)
        ids = ours.tokenizer.encode(text)
        assert theirs.encode(text) == ids, repr(text)
        seen += len(ids)
    assert seen > 20
    text = "def load(path: Path) -> Checkpoint:"
    assert theirs.decode(ours.tokenizer.encode(text)).strip() == ours.tokenizer.decode(
        ours.tokenizer.encode(text)
    )


@pytest.mark.parametrize(("quantization", "most"), [("f16", 0.001), ("q8_0", 0.005), ("q4_0", 0.1)])
@pytest.mark.parametrize("name", ["qwen3-bpe", "gpt2-char"])
def test_perplexity_of_quantized_weights(name: str, quantization: str, most: float, trained: Trained) -> None:
    ours = trained(name)
    ids = ours.tokenizer.encode(Path(__file__).read_text(encoding="utf-8"))[200 : 200 + BLOCK_SIZE - 1]
    if ours.tokenizer.kind == "char":
        assert set(ids) < set(range(ours.tokenizer.vocab_size))
    first = 16
    with torch.inference_mode():
        logits = ours.model(torch.tensor([ids]))[0, first - 1 : -1]
        expected = math.exp(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[first:])).item())
    assert engine(ours, quantization).perplexity(ids, first) == pytest.approx(expected, rel=most)
