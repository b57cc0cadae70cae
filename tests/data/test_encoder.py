"""The fast encoders against the library's, and the positions at which text may be split."""

from __future__ import annotations

import base64
import itertools
import random
from collections.abc import Callable
from functools import cache
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import normalizers, pre_tokenizers

from cpulm.data.encoder import (
    END,
    bulk_encoder,
    counting_losses,
    keeps_every_text,
    safe_border,
)
from cpulm.data.long_pretokens import LongTextEncoder
from cpulm.data.piece_borders import BorderPattern, piece_starts
from cpulm.data.pretoken_cache import PieceEncoder
from cpulm.data.splitting import splitting_pattern
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


PATTERNS: tuple[BorderPattern, ...] = get_args(BorderPattern)


@cache
def bpe(pattern: BorderPattern = "qwen2") -> Tokenizer:
    """A vocabulary that splits by ``pattern``; those of earlier versions of cpulm split as GPT-2's."""
    tokenizer = train_bpe([SAMPLE] * 8, 370)
    if pattern == "gpt2":
        tokenizer.inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = Tokenizer(tokenizer.inner)
    assert splitting_pattern(tokenizer.parts) == pattern
    assert tokenizer.kind == "bpe"
    return tokenizer


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids by the slow way, one document at a time."""
    ids: list[int] = []
    for number, part in enumerate(text.split(END)):
        ids += [tokenizer.eot_id] if number else []
        ids += tokenizer.encode(part)
    return ids


@pytest.mark.parametrize("pattern", PATTERNS)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4),
    capacity=st.sampled_from([1, 8, 1 << 16]),
    judged_bytes=st.sampled_from([1, 1 << 16]),
)
@settings(max_examples=200, deadline=None)
def test_pieces_give_the_ids_of_the_library(
    pattern: BorderPattern, texts: list[str], capacity: int, judged_bytes: int
) -> None:
    """Also if the table is so small that it forgets between any two texts, or if pieces do not repeat."""
    encoder = PieceEncoder(bpe(pattern).inner, pattern, bpe(pattern).eot_id, capacity, {}, judged_bytes)
    for text in texts:
        assert encoder.encode(text.encode()).tolist() == bpe(pattern).encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=st.text(st.characters(codec="utf-8"), max_size=200))
@settings(max_examples=150, deadline=None)
def test_pieces_give_the_ids_of_the_library_on_any_unicode(pattern: BorderPattern, text: str) -> None:
    encoder = PieceEncoder(bpe(pattern).inner, pattern, bpe(pattern).eot_id, 1 << 16, {})
    assert encoder.encode(text.encode()).tolist() == bpe(pattern).encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_character_among_words_is_split_as_by_the_library(pattern: BorderPattern) -> None:
    """Assigned or not: before a blank, after one, and within a word."""
    encode = bulk_encoder(bpe(pattern))
    codes = [*range(0x3100), *range(0x3100, 0x30000, 97)]  # all blanks are below U+3100
    letters = [chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF]
    text = "".join(f"a{letter} \n b{letter}c" for letter in letters)
    assert encode(text).tolist() == bpe(pattern).encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_more_distinct_pieces_than_the_table_begins_with(pattern: BorderPattern) -> None:
    text = " ".join(f"w{number} {number}" for number in range(9000))
    assert bulk_encoder(bpe(pattern))(text).tolist() == bpe(pattern).encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_long_pieces_are_not_confused(pattern: BorderPattern) -> None:
    words = ["x" * length + end for length in (13, 14, 15, 16, 17, 64, 65, 200) for end in ("a", "b")]
    text = " ".join(words * 2)
    assert bulk_encoder(bpe(pattern))(text).tolist() == bpe(pattern).encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_text_whose_pieces_do_not_repeat_is_not_remembered(pattern: BorderPattern) -> None:
    tokenizer = bpe(pattern)
    secrets = base64.b64encode(random.Random(0).randbytes(90_000)).decode()
    text = END.join([secrets[:50_000], "", "x" * 20_000 + " 東", secrets[50_000:]])
    data = text.encode("utf-8", "surrogateescape")
    encoder = PieceEncoder(tokenizer.inner, pattern, tokenizer.eot_id, 1 << 20, {})
    assert encoder.encode(data).tolist() == plain(tokenizer, text)
    assert encoder._table.size < 10


ONE_CLASS = ["ab", "ACGT", "0123456789", "东京是本的", "=-", "é東a", " a", "a'st", "\t\n "]


@given(
    alphabet=st.sampled_from(ONE_CLASS),
    runs=st.lists(st.tuples(st.text("012345", max_size=6), st.integers(1, 60)), max_size=4),
    size=st.sampled_from([260, 300, 400]),
)
@settings(max_examples=200, deadline=None)
def test_windows_give_the_ids_of_the_whole(alphabet: str, runs: list[tuple[str, int]], size: int) -> None:
    """Whether the windows agree soon, late or, where the text repeats a pattern, nowhere."""
    text = "".join(alphabet[int(digit) % len(alphabet)] for part, times in runs for digit in part * times)
    tokenizer = train_bpe([text, alphabet * 40], size)
    encoder = LongTextEncoder(tokenizer.inner, window=24, overlap=10)
    assert encoder.encode(text).tolist() == tokenizer.encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_long_pieces_among_others_have_the_ids_of_the_library(pattern: BorderPattern) -> None:
    documents = ["a cat sat " + "x" * 20_000 + ", 東" * 9000, "", "1" * 9000 + " \n" * 9000, "end"]
    text = END.join([*documents, ""])
    assert bulk_encoder(bpe(pattern))(text).tolist() == plain(bpe(pattern), text)


@pytest.mark.parametrize(
    ("pattern", "pieces"),
    [
        ("gpt2", "It|'s| a| | test|,| (|isn|'t| it|)?|\n   | return| x|12"),
        ("qwen2", "It|'s| a| | test|,| (|isn|'t| it|)?\n|   | return| x|1|2"),
    ],
)
def test_pieces_are_the_tokens_of_the_splitting_expression_in_plain_text(
    pattern: BorderPattern, pieces: str
) -> None:
    text = pieces.replace("|", "").encode()
    starts = [*piece_starts(text, pattern).tolist(), len(text)]
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
def test_cutting_at_the_border_changes_no_id(pattern: BorderPattern, text: str) -> None:
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
