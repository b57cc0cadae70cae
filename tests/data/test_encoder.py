"""The fast encoders against the library's, and the positions at which text may be split."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import get_args

import numpy as np
import pytest
from gigatoken.gigatoken_rs import BPETokenizer, SentencePieceTokenizer, load_hf_json
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as JsonTokenizer

from cpulm.data import bpe_encoder
from cpulm.data.encoder import (
    END,
    Encode,
    bulk_encoder,
    counting_losses,
    keeps_every_text,
    safe_border,
)
from cpulm.data.piece_borders import piece_starts
from cpulm.data.splitting import EXPRESSIONS, SplittingPattern, splitting_pattern
from cpulm.data.tokenizer import (
    Tokenizer,
    byte_tokenizer,
    char_tokenizer,
    train_bpe,
    train_word,
)
from cpulm.errors import DataError

SAMPLE = (
    "It's the year's end; they'll say 'twas cold, don't they? (1,984 of 2,001)\n\n"
    "class Point:\n    def __init__(self, x=0):\n        self.x = x  # ''\n\t\tpass\r\n"
    "naïve café — “quoted” … Привет, мир! 東京 は 🙂\x0c\n"
)
# All blanks of Unicode, the controls that Python alone takes for blanks, letters, digits and signs
# within and beyond ASCII, and what GPT-2's expression treats as one token.
ALPHABET = [
    *"aZsté09ß²½٣一。я'’!.-_=\"\0\x7f",
    *" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\xad\u1680\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000",
    "\ufeff",
    *["🙂", "'s", "'ll", "n't", "   ", "    ", " the", "return", "self.x", "<|endoftext|>", "…”"],
]
TEXTS = st.lists(st.sampled_from(ALPHABET), max_size=60).map("".join)


PATTERNS: tuple[SplittingPattern, ...] = get_args(SplittingPattern)


@cache
def bpe(pattern: SplittingPattern = "qwen2") -> Tokenizer:
    """A vocabulary that splits by ``pattern``; those of earlier versions of cpulm split as GPT-2's."""
    tokenizer = train_bpe([SAMPLE] * 8, 370)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == "gpt2")
    if pattern == "gpt2":
        tokenizer.inner.pre_tokenizer = letters
    else:
        split = pre_tokenizers.Split(Regex(EXPRESSIONS[pattern]), "isolated")
        tokenizer.inner.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    tokenizer = Tokenizer(tokenizer.inner)
    assert splitting_pattern(tokenizer.parts) == pattern
    assert tokenizer.kind == "bpe"
    return tokenizer


@cache
def encoder(pattern: SplittingPattern) -> Encode:
    return bulk_encoder(bpe(pattern))


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids by the slow way, one document at a time."""
    ids: list[int] = []
    for number, part in enumerate(text.split(END)):
        ids += [tokenizer.eot_id] if number else []
        ids += tokenizer.encode(part)
    return ids


@pytest.mark.parametrize("pattern", PATTERNS)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_bpe_gives_the_ids_of_the_library(pattern: SplittingPattern, texts: list[str]) -> None:
    """Also of texts that look like special tokens."""
    text = END.join(texts)
    assert encoder(pattern)(text).tolist() == plain(bpe(pattern), text)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=st.text(st.characters(codec="utf-8"), max_size=200))
@settings(max_examples=150, deadline=None)
def test_bpe_gives_the_ids_of_the_library_on_any_unicode(pattern: SplittingPattern, text: str) -> None:
    assert encoder(pattern)(text).tolist() == bpe(pattern).encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_character_is_split_as_by_the_library(pattern: SplittingPattern) -> None:
    """Whichever version of Unicode a library has: before a blank, after one, within a word, and before
    what is one token behind letters."""
    codes = [*range(0x3500), *range(0x3500, 0xA000, 97), *range(0xA000, 0xD800), *range(0xF900, 0x20000)]
    codes += [*range(0x20000, 0x33500, 13), *range(0xE0000, 0xE0200)]
    for begin in range(0, len(codes), 256):
        letters = map(chr, codes[begin : begin + 256])
        text = "".join(f"a{letter} \n b{letter}c {letter}'s !{letter}\n" for letter in letters)
        assert encoder(pattern)(text).tolist() == bpe(pattern).encode(text)


def test_what_the_library_has_seen_is_forgotten_after_some_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_encoder, "_REMEMBERED_BYTES", 100)
    monkeypatch.setattr(bpe_encoder, "_TIMES_VOCABULARY", 0)
    encode = bulk_encoder(bpe())
    loaded: list[str] = []

    def counted(text: str) -> BPETokenizer | SentencePieceTokenizer:
        loaded.append(text)
        return load_hf_json(text)

    monkeypatch.setattr(bpe_encoder, "load_hf_json", counted)
    for _ in range(5):
        assert encode(SAMPLE).tolist() == bpe().encode(SAMPLE)
    assert 2 <= len(loaded) <= 5


def test_a_vocabulary_that_the_library_refuses_is_left_to_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: str) -> None:
        raise RuntimeError("no such vocabulary")

    monkeypatch.setattr(bpe_encoder, "load_hf_json", refuses)
    assert bulk_encoder(bpe())(SAMPLE).tolist() == bpe().encode(SAMPLE)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_long_pieces_among_others_have_the_ids_of_the_library(pattern: SplittingPattern) -> None:
    documents = ["a cat sat " + "x" * 20_000 + ", 東" * 9000, "", "1" * 9000 + " \n" * 9000, "end"]
    assert_ids_of_the_library(pattern, documents)


@pytest.mark.parametrize("words", [5, 400])
def test_many_documents_have_the_ids_of_the_library(words: int) -> None:
    """Also if one holds what stands for the ends of the others."""
    documents = [" a cat" * (words + n % 3) + "!" * (n % 2) for n in range(20_000 // words)]
    assert_ids_of_the_library("qwen2", [*documents, "", "東"])
    assert_ids_of_the_library("qwen2", [*documents, "a\0b"])


def assert_ids_of_the_library(pattern: SplittingPattern, documents: list[str]) -> None:
    text = END.join([*documents, ""])
    assert bulk_encoder(bpe(pattern))(text).tolist() == plain(bpe(pattern), text)


def test_pieces_are_the_tokens_of_the_splitting_expression_in_plain_text() -> None:
    pieces = "It|'s| a| | test|,| (|isn|'t| it|)?\n|   | return| x|1|2"
    text = pieces.replace("|", "").encode()
    starts = [*piece_starts(text).tolist(), len(text)]
    assert "|".join(text[a:b].decode() for a, b in itertools.pairwise(starts)) == pieces


@pytest.mark.parametrize("kind", ["bpe", "byte", "char", "word", "other"])
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_every_bulk_encoder_agrees_with_encode(kind: str, texts: list[str]) -> None:
    kinds: dict[str, Callable[[], Tokenizer]] = {
        "bpe": bpe,
        "byte": byte_tokenizer,
        "char": lambda: char_tokenizer("".join(ALPHABET)),
        "word": lambda: train_word([SAMPLE], None),
        "other": other,
    }
    tokenizer = kinds[kind]()
    text = END.join(texts)
    ids = bulk_encoder(tokenizer)(text)
    assert ids.dtype == np.uint32
    assert ids.tolist() == plain(tokenizer, text)


@cache
def other() -> Tokenizer:
    """Byte-level BPE with a space before each text, which the table of pieces does not know."""
    tokenizer = Tokenizer.from_json(
        bpe().to_json().replace('"add_prefix_space":false', '"add_prefix_space":true')
    )
    assert splitting_pattern(tokenizer.parts) is None
    return tokenizer


def test_a_tokenizer_with_tokens_of_its_own_is_left_to_the_library() -> None:
    added = Tokenizer.from_json(bpe().to_json())
    added.inner.add_tokens(["twas"])
    again = Tokenizer.from_json(added.to_json())
    assert bulk_encoder(again)("'twas").tolist() == again.encode("'twas")


def test_an_unknown_character_in_a_large_text_is_named() -> None:
    with pytest.raises(DataError, match="no 'ß'"):
        bulk_encoder(char_tokenizer("abc"))("aß")


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=TEXTS.filter(bool))
@settings(max_examples=150, deadline=None)
def test_cutting_at_the_border_changes_no_id(pattern: SplittingPattern, text: str) -> None:
    border = safe_border(text)
    assert 0 < border <= len(text)
    assert bpe(pattern).encode(text[:border]) + bpe(pattern).encode(text[border:]) == bpe(pattern).encode(
        text
    )


@pytest.mark.parametrize(
    ("text", "border"),
    [
        ("one two three", 7),
        ("one two. (3", 7 - 4),
        ("one; two", 4),
        ("a\n\nb", 1),
        ("nothing", 7),
        ("a b" + "x" * 9000, 1),
    ],
)
def test_the_border_is_between_the_last_words_else_before_a_blank(text: str, border: int) -> None:
    assert safe_border(text) == border


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("the cat sat", 0),
        (
            "the cat  sat\n",
            2,
        ),  # only one space between words comes back, with nothing where a word is unknown
        ("the dog sat", 3 + 1),
        ("the Katze sat é", 5 + 2 + 2),
    ],
)
def test_what_decoding_does_not_give_back_is_counted(text: str, lost: int) -> None:
    tokenizer = train_word(["the cat sat"], None)
    assert not keeps_every_text(tokenizer)
    assert counting_losses(tokenizer, bulk_encoder(tokenizer))(text + END)[1] == lost


def test_a_tokenizer_that_lowers_letters_loses_them() -> None:
    inner = JsonTokenizer.from_str(train_bpe(["the cat sat on the mat " * 9], 260).to_json())
    inner.normalizer = normalizers.Lowercase()
    tokenizer = Tokenizer(inner)
    assert counting_losses(tokenizer, bulk_encoder(tokenizer))("The Cat sat" + END)[1] == 2


def test_tokenizers_for_every_text_lose_none() -> None:
    for tokenizer in (byte_tokenizer(), train_bpe(["the cat sat " * 9], 260), char_tokenizer("the cs")):
        assert keeps_every_text(tokenizer)
