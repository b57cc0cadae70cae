"""The text and the kind of each token."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import decoders, models, pre_tokenizers

from cpulm.data.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_bpe, train_word
from cpulm.inspection.tokens import KINDS, TokenTexts

TEXT = "the cat, the hat: naïve café № 12\n\tdef f_2(x): return x  # 日本語\n" * 4


def as_bytes(texts: tuple[str, ...]) -> bytes:
    """The bytes that texts of tokens stand for, ``<0xE2>`` read back."""
    parts = (re.split(r"(<0x[0-9A-F]{2}>)", text) for text in texts)
    return b"".join(
        bytes([int(part[3:5], 16)]) if re.fullmatch(r"<0x[0-9A-F]{2}>", part) else part.encode()
        for text in parts
        for part in text
    )


def kinds(tokenizer: Tokenizer, text: str) -> list[tuple[str, str]]:
    texts, ids = TokenTexts(tokenizer), np.array(tokenizer.encode(text))
    return list(zip(texts.texts(ids), (KINDS[kind] for kind in texts.kinds(ids)), strict=True))


@pytest.mark.parametrize("kind", ["byte", "bpe", "char"])
def test_the_texts_of_tokens_put_together_are_the_text(kind: str) -> None:
    makers: dict[str, Callable[[], Tokenizer]] = {
        "byte": byte_tokenizer,
        "bpe": lambda: train_bpe([TEXT], 300),
        "char": lambda: char_tokenizer(TEXT),
    }
    tokenizer = makers[kind]()
    assert as_bytes(TokenTexts(tokenizer).texts(tokenizer.encode(TEXT))) == TEXT.encode()


def test_bytes_that_are_no_character_are_spelled_and_special_tokens_named() -> None:
    tokenizer = byte_tokenizer()
    texts = TokenTexts(tokenizer)
    assert texts.texts([0x41, 0xE2, 0x20, tokenizer.eot_id]) == ("A", "<0xE2>", " ", "<|endoftext|>")


def test_every_kind_by_the_text_of_the_token_and_what_stands_before() -> None:
    pieces = ["the", " cat", "s", ",", " ", "12", " 3", "\n", "\n  ", "x", "_y", "'s", "  ", "日", "本", "<|"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(JsonTokenizer(models.WordLevel(vocab=vocab, unk_token="<|")))
    tokenizer.kind = "char"  # text as it stands in the vocabulary
    ids = np.array([vocab[piece] for piece in pieces] + [tokenizer.eot_id, vocab["x"]])
    found = [KINDS[kind] for kind in TokenTexts(tokenizer).kinds(ids)]
    assert found == [
        "word start",
        "word start",
        "inside a word",
        "punctuation",
        "whitespace",
        "digits",
        "digits",
        "newline",
        "newline",
        "word start",
        "inside a word",
        "mixed",
        "whitespace",
        "word start",
        "inside a word",
        "punctuation",
        "special",
        "word start",
    ]


def test_lone_bytes_are_a_kind_of_their_own() -> None:
    assert kinds(byte_tokenizer(), "aé") == [
        ("a", "word start"),
        ("<0xC3>", "lone bytes"),
        ("<0xA9>", "lone bytes"),
    ]


def test_the_words_of_a_word_vocabulary_stand_apart() -> None:
    tokenizer = train_word(["one two three one two three"], None)
    assert kinds(tokenizer, "one two three") == [
        ("one", "word start"),
        ("two", "word start"),
        ("three", "word start"),
    ]


def test_the_blanks_that_another_decoder_makes_belong_to_the_token() -> None:
    vocab = {"<unk>": 0, "▁the": 1, "▁cat": 2, "s": 3, "▁": 4, "<0xE6>": 5, "<0x0A>": 6}
    rest = (value for value in range(256) if value not in (0xE6, 0x0A))
    vocab |= {f"<0x{value:02X}>": number for number, value in enumerate(rest, len(vocab))}
    inner = JsonTokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence(steps)
    texts = TokenTexts(Tokenizer(inner))
    assert texts.texts([1, 2, 3, 5, 6]) == (" the", " cat", "s", "<0xE6>", "\n")
    assert [KINDS[kind] for kind in texts.kinds(np.array([1, 2, 3, 5, 6]))] == [
        "word start",
        "word start",
        "inside a word",
        "lone bytes",
        "newline",
    ]


def test_continuing_word_pieces_are_inside_a_word() -> None:
    vocab = {"[UNK]": 0, "play": 1, "##ing": 2, "cat": 3}
    inner = JsonTokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece()
    texts = TokenTexts(Tokenizer(inner))
    assert texts.texts([1, 2, 3]) == (" play", "ing", " cat")
    assert [KINDS[kind] for kind in texts.kinds(np.array([1, 2, 3]))] == [
        "word start",
        "inside a word",
        "word start",
    ]
