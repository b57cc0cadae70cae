"""Every kind of tokenizer: ids, conversion to JSON and back, decoding of a token stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as JsonTokenizer

from cpulm.data.encoder import bulk_encoder
from cpulm.data.tokenizer import (
    TextStream,
    Tokenizer,
    byte_tokenizer,
    char_tokenizer,
    train_bpe,
    train_word,
)
from cpulm.errors import DataError, SettingsError

TEXT = (
    "It was a bright cold day in April, and the clocks were striking thirteen.\n"
    "    def día(naïve):  # 1,984 → 東京 🙂\n\treturn naïve or don't\n"
) * 20
TEXTS = st.text(st.characters(codec="utf-8"), max_size=200)


@cache
def bpe() -> Tokenizer:
    return train_bpe([TEXT], 320)


def word() -> Tokenizer:
    return train_word([TEXT], None)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bpe": bpe,
    "byte": byte_tokenizer,
    "char": lambda: char_tokenizer(TEXT),
    "word": word,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_text_is_the_last_id(kind: str) -> None:
    tokenizer = KINDS[kind]()
    assert tokenizer.kind == kind
    assert tokenizer.eot_id == tokenizer.vocab_size - 1


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_survives_the_way_to_json(kind: str) -> None:
    before = KINDS[kind]()
    after = Tokenizer.from_json(before.to_json())
    assert (after.kind, after.vocab_size, after.eot_id) == (kind, before.vocab_size, before.eot_id)
    ids = before.encode(TEXT)
    assert after.encode(TEXT) == ids
    assert after.decode(ids) == before.decode(ids)


@pytest.mark.parametrize("kind", ["bpe", "byte"])
@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_byte_level_kinds_give_every_text_back(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_byte_ids_are_the_bytes() -> None:
    assert byte_tokenizer().encode("é\n") == [0xC3, 0xA9, 0x0A]


def test_character_ids_follow_the_sorted_characters() -> None:
    tokenizer = char_tokenizer("hello, ça va?")
    assert tokenizer.vocab_size == len(set("hello, ça va?")) + 1
    assert tokenizer.encode(" ?ç") == [0, 2, tokenizer.vocab_size - 2]


def test_a_character_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(DataError, match=r"no 'ß' \(U\+00DF\)"):
        char_tokenizer("abc").encode("aßc")


def test_words_by_frequency_and_the_rest_unknown() -> None:
    tokenizer = train_word(["b b b a a c <unk> <|endoftext|>"], 4)
    assert tokenizer.encode("a b c d") == [2, 1, 0, 0]
    assert tokenizer.decode([2, 1]) == "a b"
    assert tokenizer.vocab_size == 4


@pytest.mark.parametrize("kind", KINDS)
def test_text_cannot_inject_the_end_of_text(kind: str) -> None:
    spelled = "the <|endoftext|> day"
    tokenizer = char_tokenizer(spelled) if kind == "char" else KINDS[kind]()
    ids = tokenizer.encode(spelled)
    assert tokenizer.eot_id not in ids
    if kind != "word":
        assert tokenizer.decode(ids) == spelled


def test_decoding_leaves_the_end_of_text_out() -> None:
    tokenizer = bpe()
    assert tokenizer.decode([*tokenizer.encode("day"), tokenizer.eot_id]) == "day"


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="surrogate"):
        KINDS[kind]().encode("a\ud800")


def test_a_vocabulary_is_as_large_as_the_text_fills() -> None:
    assert 257 < train_bpe(["to be or not to be"], 5000).vocab_size < 280
    assert train_word(["to be or not to be"], 5000).vocab_size == 6


@pytest.mark.parametrize("size", [2, 256])
def test_bpe_needs_room_for_all_bytes(size: int) -> None:
    with pytest.raises(SettingsError, match="256 bytes"):
        train_bpe([TEXT], size)


def test_no_tokenizer_in_the_file_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match="cannot read"):
        Tokenizer.from_file(path)
    path.write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot read"):
        Tokenizer.from_file(path)


def foreign(*special: str) -> str:
    inner = JsonTokenizer(models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(list(special))
    inner.enable_padding(length=8)
    inner.enable_truncation(2)
    return inner.to_str()


def test_a_foreign_end_of_text_is_found_and_a_missing_one_added() -> None:
    assert Tokenizer.from_json(foreign("</s>", "<pad>")).eot_id == 2
    added = Tokenizer.from_json(foreign())
    assert added.eot_id == added.vocab_size - 1 == 3
    assert Tokenizer.from_json(added.to_json()).eot_id == 3
    assert added.kind == "other"


def test_foreign_padding_and_truncation_are_switched_off() -> None:
    assert Tokenizer.from_json(foreign()).encode("a a a") == [1, 1, 1]


def test_merges_that_a_foreign_file_drops_at_random_are_kept() -> None:
    ours = train_bpe(["the cat and the hat " * 9], 300)
    parts = json.loads(ours.to_json())
    parts["model"]["dropout"] = 1.0
    read = Tokenizer.from_json(json.dumps(parts))
    assert read.encode("the cat") == bulk_encoder(read)("the cat").tolist() == ours.encode("the cat")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_stream_puts_together_what_decode_gives(kind: str, data: st.DataObject) -> None:
    """Any ids at all, broken characters and special tokens among them."""
    tokenizer = KINDS[kind]()
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    stream = TextStream(tokenizer)
    assert "".join([stream.push(number) for number in ids] + [stream.flush()]) == tokenizer.decode(ids)


def test_the_stream_shows_a_character_once_it_is_whole() -> None:
    stream = TextStream(byte_tokenizer())
    assert [stream.push(byte) for byte in "a🙂b".encode()] == ["a", "", "", "", "🙂", "b"]
    assert stream.flush() == ""
    stream.push(0xE2)
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"
    assert stream.flush() == ""


def test_the_stream_joins_sentencepiece_words_and_byte_pieces() -> None:
    vocab = {"<unk>": 0, "▁a": 1, "▁b": 2, "<0xC3>": 3, "<0xA9>": 4, "<0xFF>": 5}
    inner = JsonTokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer = Tokenizer(inner)
    for ids in ([1, 2, 3, 4, 1], [3, 4, 5, 2], [1, 6, 2], [3, 4]):
        stream = TextStream(tokenizer)
        assert "".join([stream.push(number) for number in ids] + [stream.flush()]) == tokenizer.decode(ids)


def test_transformers_reads_the_file_and_gives_the_same_ids(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    path = tmp_path / "tokenizer.json"
    path.write_text(bpe().to_json(), encoding="utf-8")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path))
    assert theirs.encode(TEXT, add_special_tokens=False) == bpe().encode(TEXT)
    assert json.loads(path.read_text(encoding="utf-8"))["model"]["type"] == "BPE"
