"""transformers loads an exported folder, computes the same logits and writes the same text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from small_exports import KINDS, SmallTrained
from texts_of_all_kinds import texts
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

Trained = Callable[[str], SmallTrained]


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_logits_and_greedy_text(name: str, trained: Trained) -> None:
    ours = trained(name)
    theirs: Any = AutoModelForCausalLM.from_pretrained(ours.exported("hf"), attn_implementation="eager")
    ids = torch.tensor([ours.tokenizer.encode("    raise DataError(path)\n" * 9)[:100]])
    torch.testing.assert_close(theirs(ids).logits, ours.model(ids), atol=1e-4, rtol=0)
    prompt = torch.tensor([ours.prompt()])
    made = theirs.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert made[0, prompt.size(1) :].tolist() == ours.greedy(40)


@pytest.mark.parametrize("name", ["qwen3-bpe", "qwen3-byte", "qwen3-char", "qwen3-word"])
def test_tokenizers_agree(name: str, trained: Trained) -> None:
    ours = trained(name)
    theirs = AutoTokenizer.from_pretrained(ours.exported("hf"))
    known = set(ours.tokenizer.parts["model"]["vocab"])
    for text in texts(1000):
        if name == "qwen3-char":
            text = "".join(character for character in text if character in known)
        if name == "qwen3-word":
            text = text.replace("<unk>", "")  # transformers finds special tokens in texts
        ids = ours.tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.tokenizer.decode(ids)
    assert theirs.eos_token_id == ours.tokenizer.eot_id == len(theirs) - 1


def test_the_configuration_is_read_by_transformers_4_and_5(trained: Trained) -> None:
    ours = trained("qwen3-byte")
    config = json.loads((ours.exported("hf") / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e5
    assert config["head_dim"] == 24
    assert config["tie_word_embeddings"] is False
    assert config["use_sliding_window"] is False
    ids = [config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")]
    assert ids == [ours.tokenizer.eot_id] * 3
    assert AutoConfig.from_pretrained(ours.exported("hf")).rope_parameters["rope_theta"] == 1e5


def test_a_pipeline_writes(trained: Trained) -> None:
    write = pipeline("text-generation", str(trained("qwen3-bpe").exported("hf")))
    text = write("def load(", max_new_tokens=5)[0]["generated_text"]
    assert text.startswith("def load(")
    assert len(text) > len("def load(")


def test_bare_weights_keep_their_names(trained: Trained) -> None:
    ours = trained("gpt2-char")
    loaded = load_file(ours.exported("safetensors"))
    assert loaded.keys() == ours.model.state_dict().keys()
    assert all(torch.equal(torch.tensor(loaded[n]), weight) for n, weight in ours.model.state_dict().items())


def test_the_card_has_what_was_measured_and_no_paths(trained: Trained) -> None:
    card = (trained("qwen3-bpe").exported("hf") / "README.md").read_text()
    assert "| Trained on | 15.4 K tokens in 30 steps |" in card
    assert "2 query heads, 1 key-value heads" in card
    assert "| Training text | notes.txt |" in card
    assert "somebody" not in card
