"""Vocabularies of SentencePiece, as those of Llama 2 and TinyLlama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hf_models import ROWS, hf_model
from llama_cpp import LlamaCpp
from texts_of_all_kinds import texts
from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import models, normalizers, trainers

from cpulm.checkpoints.load_model import load_model
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError
from cpulm.generation.prompt import encode_prompt
from cpulm.generation.rules.token_texts import token_texts
from cpulm.pretrained.gguf_names import TokenType, gguf_name, interleaved
from cpulm.pretrained.gguf_tokenizer import tokenizer_of

SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def pieces() -> list[str]:
    """Tokens in the order of SentencePiece: special ones, bytes, merged ones by their rank, characters."""
    inner = JsonTokenizer(models.BPE())
    inner.normalizer = normalizers.Replace(" ", "▁")
    text = " " + Path(__file__).read_text(encoding="utf-8")
    more = ROWS - len(SPECIAL) - len(BYTES)
    inner.train_from_iterator([text] * 3, trainers.BpeTrainer(vocab_size=more, show_progress=False))
    vocab: dict[str, int] = inner.get_vocab()
    ranked = sorted(vocab, key=lambda piece: vocab[piece])
    ranked.sort(key=lambda piece: len(piece) == 1)
    return [*SPECIAL, *BYTES, *ranked]


def vocabulary() -> dict[str, Any]:
    """As the metadata of a GGUF file have it."""
    tokens = pieces()
    first = len(SPECIAL) + len(BYTES)
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * len(BYTES)]
    return {
        "tokenizer.ggml.model": b"llama",
        "tokenizer.ggml.tokens": [token.encode() for token in tokens],
        "tokenizer.ggml.scores": [0.0] * first + [-float(rank) for rank in range(len(tokens) - first)],
        "tokenizer.ggml.token_type": [*kinds, *[TokenType.NORMAL] * (len(tokens) - first)],
        "tokenizer.ggml.bos_token_id": 1,
    }


def llama_file(path: Path) -> Path:
    """A small Llama with this vocabulary."""
    theirs, found = hf_model("untied llama"), vocabulary()
    config = theirs.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(found["tokenizer.ggml.tokens"])
    writer.add_token_scores(found["tokenizer.ggml.scores"])
    writer.add_token_types([int(kind) for kind in found["tokenizer.ggml.token_type"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    name_of = gguf_name("llama", config.num_hidden_layers)
    for name, weight in theirs.state_dict().items():
        heads = config.num_attention_heads * (".q_proj." in name or ".k_proj." in name)
        array = weight.numpy()
        writer.add_tensor(name_of(name), interleaved(array, heads) if heads else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_text_and_tokens_are_those_of_llama_cpp(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "llama.gguf")
    model, tokenizer, _ = load_model(path, warn=pytest.fail)
    theirs = LlamaCpp(path, 128)
    for text in texts(150):
        assert tokenizer.encode(text) == theirs.encode(text)
    prompt = encode_prompt(tokenizer, "def vocabulary", starts_documents=True)
    assert prompt == [1, *tokenizer.encode("def vocabulary")]
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert theirs.greedy(prompt, 8) == ids[len(prompt) :]


def test_what_is_encoded_comes_back() -> None:
    tokenizer = tokenizer_of(vocabulary())
    for text in texts(150):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.eot_id, tokenizer.kind) == (2, "other")
    assert tokenizer.decode([1]) == ""
    assert tokenizer.encode("</s>") != [2]
    assert "▁" not in "".join(token_texts(tokenizer))


def test_a_folder_of_transformers_has_the_same_one() -> None:
    tokenizer = tokenizer_of(vocabulary())
    again = Tokenizer.from_json(tokenizer.to_json())
    assert (again.kind, again.begin_ids) == ("other", [1])
    without = tokenizer_of({**vocabulary(), "tokenizer.ggml.add_bos_token": False})
    assert without.begin_ids == []
    assert encode_prompt(without, "a", starts_documents=True) == without.encode("a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokenizer.ggml.scores": [0.0]}, "no score for each token"),
        ({"tokenizer.ggml.tokens": [b"\xff"] * ROWS}, "is not UTF-8"),
    ],
)
def test_hostile_vocabularies(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tokenizer_of({**vocabulary(), **values})
