"""llama.cpp loads an exported GGUF file, splits text the same way and writes the same text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from command_line import cpulm
from llama_cpp import LlamaCpp
from small_exports import BLOCK_SIZE, KINDS, SmallTrained
from small_models import a_model
from texts_of_all_kinds import texts

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints import load_model
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.data.tokenizer import UNKNOWN, byte_tokenizer
from cpulm.export.q4_k import quantize_q4_k
from cpulm.settings import Settings

Trained = Callable[[str], SmallTrained]


def engine(ours: SmallTrained, quantization: str) -> LlamaCpp:
    return LlamaCpp(ours.exported("gguf", "--quantize", quantization), BLOCK_SIZE)


@pytest.mark.parametrize("name", KINDS)
def test_greedy_text_in_f32(name: str, trained: Trained) -> None:
    ours = trained(name)
    theirs, expected = engine(ours, "f32").greedy(ours.prompt(), 40), ours.greedy(40)
    same = next((n for n, both in enumerate(zip(theirs, expected, strict=True)) if both[0] != both[1]), 40)
    if same < 40:  # the text may go on differently only where two tokens are as likely
        with torch.inference_mode():
            logits = ours.model(torch.tensor([ours.prompt() + expected[:same]]))[0, -1]
        assert abs(float(logits[theirs[same]] - logits[expected[same]])) < 1e-3
    assert same > 10


def readable(ours: SmallTrained, text: str) -> str:
    """What of ``text`` llama.cpp promises to split in the same way: see the limits of each vocabulary."""
    known = ours.tokenizer.parts["model"]["vocab"].keys() - {UNKNOWN}
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
    text = readable(ours, Path(load_model.__file__).read_text(encoding="utf-8"))
    ids = ours.tokenizer.encode(text)[: BLOCK_SIZE - 1]
    first = 16
    with torch.inference_mode():
        logits = ours.model(torch.tensor([ids]))[0, first - 1 : -1]
        expected = math.exp(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[first:])).item())
    assert engine(ours, quantization).perplexity(ids, first) == pytest.approx(expected, rel=most)


def test_q4_k_is_what_llama_cpp_reads_and_closer_than_q4_0() -> None:
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(40, 512)).astype(np.float32)
    weight[3] = 0.0
    weight[6] += 5.0

    def error(stored: npt.NDArray[np.uint8], kind: gguf.GGMLQuantizationType) -> npt.NDArray[np.float64]:
        difference: npt.NDArray[np.float64] = gguf.quants.dequantize(stored, kind) - weight.astype(float)
        errors: npt.NDArray[np.float64] = np.sqrt((difference**2).mean(axis=1))
        return errors

    q4_0 = gguf.GGMLQuantizationType.Q4_0
    ours = error(quantize_q4_k(weight), gguf.GGMLQuantizationType.Q4_K)
    assert ours[3] == 0.0
    assert ours[6] < 0.15
    assert ours.mean() < 0.9 * error(gguf.quants.quantize(weight, q4_0), q4_0).mean()


def test_a_wide_model_in_q4_k(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = a_model(tokenizer.vocab_size, n_embd=256, n_head=4, block_size=64, n_inner=288)
    settings = Settings.model_validate({"model": model.settings.model_dump()})
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    saved = Checkpoint(settings, tokenizer.to_json(), tokenizer.vocab_size, True, weights)
    checkpoints.save(saved, tmp_path / "model.pt")
    done = cpulm(tmp_path, "export", "model.pt", "--to", "gguf", "--quantize", "q4_k", "--out", "m.gguf")
    assert "not a multiple of 256 wide are stored in q5_0" in done.stderr
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == "Q4_K"
    assert types["blk.0.ffn_down.weight"] == "Q5_0"
    assert types["token_embd.weight"] == "Q8_0"
    assert len(LlamaCpp(tmp_path / "m.gguf", 64).greedy([1, 2, 3], 5)) == 5
