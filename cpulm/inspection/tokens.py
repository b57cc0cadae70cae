"""The text and the kind of each token."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cpulm.data.tokenizer import Tokenizer, byte_letters, is_byte_level
from cpulm.inspection.model_report import Ints

WORD_START, INSIDE_WORD, DIGITS, PUNCTUATION = "word start", "inside a word", "digits", "punctuation"
WHITESPACE, NEWLINE, MIXED = "whitespace", "newline", "mixed"
BYTES, SPECIAL = "lone bytes", "special"
KINDS = (WORD_START, INSIDE_WORD, DIGITS, PUNCTUATION, WHITESPACE, NEWLINE, MIXED, BYTES, SPECIAL)
"""Every token is of exactly one of these kinds.

``word start`` and ``inside a word`` begin with a letter, ignoring blanks; which of the two it is depends on
the token before. ``digits`` and ``punctuation`` contain nothing else; ``mixed`` begins with one of them and
also contains others. ``lone bytes`` are bytes that are not a whole character.
"""

_FIRST_BYTE = 0xDC00
"""Where Python puts a byte that is not UTF-8 (``surrogateescape``)."""


class _Traits(NamedTuple):
    text: str
    kind: str | None
    """None: a word's start or inside, depending on the token before."""
    ends_word: bool
    """Whether a letter after it would be inside a word."""


class TokenTexts:
    """The texts and kinds of a tokenizer's tokens, computed once for each requested token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, _Traits] = {}

    def text(self, token: int) -> str:
        """The text of ``token``: its characters, ``<0xE2>`` for bytes that are not a character, a special
        token's name; empty for an id that the tokenizer does not have."""
        return self._traits(token).text

    def texts(self, tokens: Sequence[int] | Ints) -> tuple[str, ...]:
        return tuple(self.text(int(token)) for token in tokens)

    def kinds(self, tokens: Ints) -> npt.NDArray[np.int64]:
        """The kind of each token of a text, as its index in :data:`KINDS`.

        Args:
            tokens: [n] ids, concatenated.
        """
        ids, where = np.unique(tokens, return_inverse=True)
        traits = [self._traits(int(token)) for token in ids]
        alone = np.array([-1 if each.kind is None else KINDS.index(each.kind) for each in traits])
        ends_word = np.array([each.ends_word for each in traits])
        kinds = alone[where].astype(np.int64)
        follows = np.concatenate(([False], ends_word[where][:-1]))
        begins = kinds < 0
        kinds[begins & follows] = KINDS.index(INSIDE_WORD)
        kinds[begins & ~follows] = KINDS.index(WORD_START)
        return kinds

    def _traits(self, token: int) -> _Traits:
        traits = self._known.get(token)
        if traits is None:
            traits = self._known[token] = self._look_at(token)
        return traits

    def _look_at(self, token: int) -> _Traits:
        tokenizer = self._tokenizer
        piece = tokenizer.inner.id_to_token(token) or ""
        if token in tokenizer.special_ids or not piece:
            return _Traits(piece, SPECIAL, ends_word=False)
        text = self._text_of(token, piece)
        # Tokens of a word vocabulary are separate words, though no blank in the token says so.
        joins = tokenizer.kind != "word"
        ends_word = joins and _is_word(text[-1:])
        kind = _kind_of(text)
        if kind == WORD_START and not text[:1].isspace():
            return _Traits(text, None, ends_word)
        return _Traits(spelled(text), kind, ends_word)

    def _text_of(self, token: int, piece: str) -> str:
        """The text after a word; bytes that are not a character as surrogates."""
        if piece in self._bytes_of_pieces:
            return chr(_FIRST_BYTE + self._bytes_of_pieces[piece])
        if is_byte_level(self._tokenizer.parts):
            known = self._bytes_of_letters
            if all(letter in known for letter in piece):
                return bytes(known[letter] for letter in piece).decode("utf-8", "surrogateescape")
            return piece
        if self._tokenizer.kind != "other":
            return piece
        # Decoders that add blanks or remove marks do so only between two tokens.
        before = self._tokenizer.decode([self._anchor])
        together = self._tokenizer.decode([self._anchor, token])
        return together[len(before) :] or piece

    @cached_property
    def _bytes_of_letters(self) -> dict[str, int]:
        return {letter: value for value, letter in enumerate(byte_letters())}

    @cached_property
    def _bytes_of_pieces(self) -> dict[str, int]:
        """``<0xE2>`` and the like, if the tokenizer falls back to bytes; ASCII bytes are characters."""
        if not self._tokenizer.parts["model"].get("byte_fallback"):
            return {}
        return {f"<0x{value:02X}>": value for value in range(128, 256)}

    @cached_property
    def _anchor(self) -> int:
        """Any token with letters."""
        vocab = self._tokenizer.inner.get_vocab()
        return min((number for piece, number in vocab.items() if piece.isalpha()), default=0)


def spelled(text: str) -> str:
    """Write bytes of ``text`` that are not UTF-8 as ``<0xE2>``."""
    return "".join(
        f"<0x{ord(char) - _FIRST_BYTE:02X}>" if 0xDC80 <= ord(char) <= 0xDCFF else char for char in text
    )


def _kind_of(text: str) -> str:
    if any(0xDC80 <= ord(char) <= 0xDCFF for char in text):
        return BYTES
    inside = text.strip()
    if not inside:
        return NEWLINE if "\n" in text or "\r" in text else WHITESPACE
    if all(unicodedata.category(char)[0] == "N" for char in inside):
        return DIGITS
    if not any(unicodedata.category(char)[0] in "LMN" for char in inside):
        return PUNCTUATION
    return WORD_START if _is_word(inside[0]) and not inside[0].isnumeric() else MIXED


def _is_word(char: str) -> bool:
    """Whether a character (or an empty string) is part of a word."""
    return bool(char) and (char == "_" or unicodedata.category(char)[0] in "LMN")
