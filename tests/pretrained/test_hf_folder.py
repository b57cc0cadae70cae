"""Folders of transformers are read with the logits of transformers, and hostile ones are refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import CONFIGS, VOCAB, hf_model, saved
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cpulm.checkpoints.load_model import load_model
from cpulm.errors import DataError, ResourceError
from cpulm.pretrained.read_pretrained import read_pretrained, require_memory
from cpulm.pretrained.recognize import is_pretrained


def ignored(_message: str) -> None:
    pass


@torch.inference_mode()
def assert_same_logits(folder: Path, theirs: Any) -> None:
    model, tokenizer, _ = load_model(folder, warn=ignored)
    text = "def hf_model(name: str) -> Any:\n    torch.manual_seed(0)\n"
    ids = torch.tensor([tokenizer.encode(text * 3)[:100]])
    torch.testing.assert_close(model(ids), theirs(ids).logits[..., :VOCAB], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = hf_model(name)
    assert is_pretrained(saved(theirs, tmp_path))
    assert_same_logits(tmp_path, theirs)


def test_rows_without_tokens_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    model, tokenizer, checkpoint = load_model(saved(hf_model("qwen3"), tmp_path), warn=notes.append)
    assert model.vocab_size == checkpoint.vocab_size == tokenizer.vocab_size == VOCAB
    assert notes == [f"{tmp_path}: left out 10 rows of the embedding that the tokenizer has no tokens for"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_shards(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = hf_model("smollm2").to(dtype)
    saved(theirs, tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(tmp_path, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


def test_a_config_of_transformers_4(tmp_path: Path) -> None:
    theirs = hf_model("smollm2")
    config = edit(saved(theirs, tmp_path), lambda config: config.pop("rope_parameters"))
    assert "rope_parameters" not in config
    edit(tmp_path, lambda config: config.update(rope_theta=100_000.0, rope_scaling=None))
    assert_same_logits(tmp_path, theirs)


def test_names_without_their_first_part_and_constants_among_the_weights(tmp_path: Path) -> None:
    """As in the files of openai-community/gpt2."""
    theirs = hf_model("gpt2")
    weights = load_file(saved(theirs, tmp_path) / "model.safetensors")
    renamed = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    renamed["h.0.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
    save_file(renamed, tmp_path / "model.safetensors")
    assert_same_logits(tmp_path, theirs)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mamba"}, "its architecture is 'mamba'"),
        ({"model_type": ["llama"]}, "its architecture is ['llama']"),
        (
            {"hidden_size": 64},
            "its weight model.embed_tokens.weight is [410, 48], and its settings make it [410, 64]",
        ),
        ({"num_hidden_layers": 3}, "it has no weight model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "it has a weight model.layers.1.input_layernorm.weight"),
        ({"num_hidden_layers": 1e9}, "in config.json num_hidden_layers cannot be 1000000000.0"),
        ({"num_hidden_layers": 10**9}, "in config.json model.n_layer = 1000000000: must be at most 10,000"),
        ({"num_attention_heads": 0}, "in config.json model.n_head = 0: must be at least 1"),
        ({"vocab_size": None}, "in config.json vocab_size cannot be None"),
        ({"vocab_size": 300}, "its weight model.embed_tokens.weight is [410, 48]"),
        ({"hidden_act": "gelu"}, "in config.json hidden_act is 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
            "in config.json rope_type is 'llama3'",
        ),
        ({"quantization_config": {"bits": 4}}, "its weights are quantized"),
    ],
)
def test_configs_that_do_not_fit(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    edit(saved(hf_model("smollm2"), tmp_path), lambda config: config.update(values))
    with pytest.raises(DataError) as error:
        read_pretrained(tmp_path)
    assert error.value.message.startswith(f"{tmp_path}: {message}")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def _cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def _whole_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, folder / "model.safetensors")


def _index_outside(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    places = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _larger_tokenizer(folder: Path) -> None:
    parts = json.loads((folder / "tokenizer.json").read_text())
    parts["model"]["vocab"] |= {f"more{number}": VOCAB + number for number in range(20)}
    parts["model"]["vocab"]["<|endoftext|>"] = VOCAB - 1
    (folder / "tokenizer.json").write_text(json.dumps(parts))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_pickled, "its weights are pytorch_model.bin, a pickle, which can run code when it is read"),
        (_huge_header, "model.safetensors cannot be read"),
        (_cut, "model.safetensors cannot be read"),
        (_whole_numbers, "model.safetensors holds model.norm.weight as I8"),
        (_index_outside, "model.safetensors.index.json names '../other.safetensors'"),
        (_no_tokenizer, "it has no tokenizer.json"),
        (_larger_tokenizer, "its tokenizer has 420 tokens and its embedding 410 rows"),
    ],
)
def test_hostile_and_incomplete_folders(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    damage(saved(hf_model("smollm2"), tmp_path))
    with pytest.raises(DataError) as error:
        read_pretrained(tmp_path)
    assert message in error.value.message


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    theirs = hf_model("smollm2")
    with torch.no_grad():
        theirs.model.norm.weight[3] = float("nan")
    with pytest.raises(DataError, match=r"the weight model\.norm\.weight is not finite"):
        load_model(saved(theirs, tmp_path), warn=ignored)


def test_a_model_larger_than_memory() -> None:
    require_memory(Path("model"), 1 << 28, 1 << 30)
    with pytest.raises(ResourceError) as error:
        require_memory(Path("model"), 596 * 10**6, 1 << 30)
    assert error.value.message.startswith(
        "the weights of model need 2.2 GiB of memory in fp32, and 1.0 GiB are"
    )
