"""Odd ``tokenizer.json`` files are refused in a line, before or while text is encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cpulm.data.encoder import bulk_encoder
from cpulm.data.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_bpe, train_word
from cpulm.errors import DataError

WORD = {"type": "WhitespaceSplit"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True}


def written(model: dict[str, Any], **parts: Any) -> str:
    record: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
    }
    rest = {"pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}
    return json.dumps({**record, **rest, **parts})


def words(vocab: dict[str, Any], unknown: Any = "<unk>") -> str:
    return written({"type": "WordLevel", "vocab": vocab, "unk_token": unknown}, pre_tokenizer=WORD)


def added(number: Any, content: str = "x") -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": content, **flags}


def characters(vocab: dict[str, Any], **parts: Any) -> str:
    return written({"type": "BPE", "vocab": vocab, "merges": []}, **parts)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            written({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}),
            "its unknown token '<unk>' is not in its vocabulary",
        ),
        (words({"<unk>": 0, "a": 4_294_967_290}), "2 tokens have ids up to 4,294,967,290"),
        (words({"<unk>": 0, "a": 9_000}), "2 tokens have ids up to 9,000"),
        (words({"<unk>": 0, "a": 10**30}), "ids up to"),
        (words({"<unk>": 0, "a": -1}), "the id of 'a' cannot be -1"),
        (words({"<unk>": 0, "a": 1.5}), "the id of 'a' cannot be 1.5"),
        (words({"<unk>": 0, "a": True}), "the id of 'a' cannot be True"),
        (words({"<unk>": 0, "a": 1, "b": 1}), "gives the id 1 to"),
        (words({"<unk>": 0, "a": 2}), "gives the id 2 to"),
        (characters({}), "has an empty vocabulary"),
        (characters({}, pre_tokenizer=BYTES, added_tokens=[added(0)]), "has an empty vocabulary"),
        (written({"type": "Unigram", "vocab": [], "unk_id": None}), "has an empty vocabulary"),
        (characters({"a": 0}, added_tokens=[added(4_294_967_290)]), "ids up to 4,294,967,290"),
        (characters({"a": 0}, added_tokens=[added("0")]), "the id of 'x' cannot be '0'"),
        (characters({"a": 0}, added_tokens=[{}]), "it has no 'id'"),
        (characters({"a": 0}, added_tokens=3), "not a tokenizer.json"),
        (written({"type": "BPE", "vocab": 3, "merges": []}), "neither a mapping nor a list"),
        (written({"type": "BPE", "merges": []}), "it has no 'vocab'"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "it holds no JSON object"),
        ("{}", "it has no 'model'"),
        ("", "not a tokenizer.json"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(text: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as raised:
        Tokenizer.from_json(text)
    assert len(raised.value.message) < 300


@pytest.mark.parametrize(
    "text",
    [
        characters({"ab": 0, "c": 1}),
        characters({"a": 0, "b": 1}, added_tokens=[added(2, "ab")]),
        characters({"a": 0, "b": 1}, normalizer={"type": "Lowercase"}),
        characters({"a": 0}, pre_tokenizer=BYTES),
        written(
            {"type": "WordLevel", "vocab": {"<unk>": 0, "ab": 1}, "unk_token": "<unk>"},
            normalizer={"type": "Lowercase"},
            pre_tokenizer=WORD,
        ),
    ],
)
def test_a_file_with_more_to_it_than_a_kind_of_ours_is_encoded_by_the_library(text: str) -> None:
    tokenizer = Tokenizer.from_json(text)
    assert tokenizer.kind == "other"
    assert bulk_encoder(tokenizer)("AB ab").tolist() == tokenizer.encode("AB ab")


def test_an_error_of_the_library_while_it_encodes_is_one_of_the_data() -> None:
    unigram = written({"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None})
    tokenizer = Tokenizer.from_json(unigram)
    for encode in (tokenizer.encode, bulk_encoder(tokenizer)):
        with pytest.raises(DataError, match=r"the tokenizer cannot encode this text: .*unk_id"):
            encode("b")


def test_what_cpulm_writes_is_read(tmp_path: Path) -> None:
    for tokenizer in (
        byte_tokenizer(),
        char_tokenizer("abé漢"),
        train_word(["a b a"], None),
        train_bpe(["the cat and the hat " * 9], 300),
    ):
        path = tmp_path / "tokenizer.json"
        path.write_text(tokenizer.to_json(), encoding="utf-8")
        read = Tokenizer.from_file(path)
        assert (read.kind, read.vocab_size, read.eot_id) == (
            tokenizer.kind,
            tokenizer.vocab_size,
            tokenizer.eot_id,
        )
