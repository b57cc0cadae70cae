"""Encodes large texts with the fastest exact method for each kind of tokenizer.

The ids equal those of :meth:`cpulm.data.tokenizer.Tokenizer.encode` for the same text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from cpulm.data.bpe_encoder import BpeEncoder, Ids
from cpulm.data.piece_borders import END_MARK
from cpulm.data.splitting import splitting_pattern
from cpulm.data.tokenizer import CANNOT_ENCODE, UNKNOWN, Tokenizer, byte_letters
from cpulm.data.tokenizer_json import library_errors
from cpulm.errors import DataError

END = "\udcff"
"""Marks the end of a document within a text to encode: half a surrogate pair, which no valid text holds."""

Encode = Callable[[str], Ids]
"""Encodes a text, with ``END`` after each document that ends, to ids, uint32 [n]. Safe in several threads."""

EncodeBytes = Callable[[bytes], Ids]
"""As :data:`Encode`, of text as UTF-8 with ``END_MARK`` after each document that ends."""

CountingEncode = Callable[[str], tuple[Ids, int]]
"""As :data:`Encode`, and gives how many bytes of the text decoding the ids does not give back."""

# White space as Unicode and the tokenizers library define it; str.split() would take U+001C-001F too.
_WORD = re.compile("[^\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")


def to_bytes(text: str) -> bytes:
    """A text with its marks as bytes, which :func:`to_text` turns back."""
    return text.encode("utf-8", "surrogateescape")


def to_text(data: bytes) -> str:
    """What :func:`to_bytes` made bytes of."""
    return data.decode("utf-8", "surrogateescape")


def bytes_encoder(tokenizer: Tokenizer) -> EncodeBytes | None:
    """The encoder of bytes, for a tokenizer that takes text as bytes and loses nothing; None for others."""
    if tokenizer.kind == "byte":
        return _byte_encoder(tokenizer)
    if tokenizer.kind not in ("char", "word") and keeps_every_text(tokenizer):
        with suppress(RuntimeError):
            return BpeEncoder(tokenizer.inner, tokenizer.eot_id).encode
    return None


def bulk_encoder(tokenizer: Tokenizer) -> Encode:
    """Return the fastest exact encoder for ``tokenizer``.

    A text may be encoded in parts: the ids are those of the whole text if it is cut at the borders that
    :func:`safe_border` returns.
    """
    if of_bytes := bytes_encoder(tokenizer):
        return lambda text: of_bytes(to_bytes(text))
    if tokenizer.kind == "char":
        return _char_encoder(tokenizer)
    if tokenizer.kind == "word":
        return _word_encoder(tokenizer)
    return _library_encoder(tokenizer)


def counting_losses(tokenizer: Tokenizer, encode: Encode) -> CountingEncode:
    """Return an encoder that gives the ids and how many bytes of the text they do not give back."""
    if keeps_every_text(tokenizer):
        return lambda text: (encode(text), 0)

    def counted(text: str) -> tuple[Ids, int]:
        ids = encode(text)
        return ids, lost_bytes(tokenizer, text.replace(END, ""), ids.tolist())

    return counted


def keeps_every_text(tokenizer: Tokenizer) -> bool:
    """Whether decoding is known to give every text back; others are measured, with :func:`lost_bytes`."""
    if tokenizer.kind == "char":  # it refuses what it lacks
        return tokenizer.parts.get("normalizer") is None
    byte_level = (tokenizer.parts.get("decoder") or {}).get("type") == "ByteLevel"
    complete = tokenizer.inner.get_vocab().keys() >= set(byte_letters())
    splits = splitting_pattern(tokenizer.parts) is not None and _never_searched(tokenizer.parts)
    return byte_level and complete and (tokenizer.kind == "byte" or splits)


def lost_bytes(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> int:
    """How many bytes of ``text`` its tokens ``ids`` do not give back.

    Characters are counted, not aligned: what comes back elsewhere, or was never there, does not count. So it
    is 0 if decoding gives the text back, and never more than was lost.
    """
    unknown = unknown_id(tokenizer)
    back = tokenizer.decode([number for number in ids if number != unknown])
    if back == text:
        return 0
    lost = Counter(text) - Counter(back)
    return sum(count * len(character.encode()) for character, count in lost.items())


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id for all text that the vocabulary lacks; None if it lacks none."""
    model = tokenizer.parts["model"]
    name = model.get("unk_token")
    return model.get("unk_id") if name is None else tokenizer.inner.token_to_id(name)


def _never_searched(parts: dict[str, Any]) -> bool:
    """Whether no text is searched for added tokens: those that are not special are found in it."""
    return all(token["special"] for token in parts.get("added_tokens", []))


def _byte_encoder(tokenizer: Tokenizer) -> EncodeBytes:
    vocab = tokenizer.inner.get_vocab()
    table = np.array([vocab[letter] for letter in byte_letters()], dtype=np.uint32)
    table[END_MARK] = tokenizer.eot_id

    def encode(data: bytes) -> Ids:
        ids: Ids = table[np.frombuffer(data, dtype=np.uint8)]
        return ids

    return encode


def _char_encoder(tokenizer: Tokenizer) -> Encode:
    vocab: dict[str, int] = tokenizer.parts["model"]["vocab"]
    unknown = np.uint32(tokenizer.vocab_size)
    table = np.full(0x110000, unknown, dtype=np.uint32)
    for character, number in vocab.items():
        table[ord(character)] = number
    table[ord(END)] = tokenizer.eot_id

    def encode(text: str) -> Ids:
        ids: Ids = table[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")]
        strange = np.flatnonzero(ids == unknown)
        if len(strange):
            character = text[int(strange[0])]
            raise DataError(
                f"the character vocabulary has no {character!r} (U+{ord(character):04X}), but the text does",
                "build the vocabulary from this text with data.tokenizer=char, or use byte",
            )
        return ids

    return encode


def _word_encoder(tokenizer: Tokenizer) -> Encode:
    vocab: dict[str, int] = tokenizer.parts["model"]["vocab"]
    unknown = vocab.get(tokenizer.parts["model"].get("unk_token", UNKNOWN))

    def encode(text: str) -> Ids:
        if unknown is None:
            tokenizer.check_words(_WORD.findall(text.replace(END, " ")))
        return _with_ends(
            [[vocab.get(word, unknown or 0) for word in _WORD.findall(part)] for part in text.split(END)],
            tokenizer.eot_id,
        )

    return encode


def _library_encoder(tokenizer: Tokenizer) -> Encode:
    def encode(text: str) -> Ids:
        with library_errors(*CANNOT_ENCODE):
            batch = tokenizer.inner.encode_batch_fast(text.split(END), add_special_tokens=False)
        return _with_ends([encoding.ids for encoding in batch], tokenizer.eot_id)

    return encode


def _with_ends(parts: list[list[int]], eot_id: int) -> Ids:
    """Concatenate the parts, with the end-of-text id between them."""
    flat: list[int] = []
    for number, part in enumerate(parts):
        if number:
            flat.append(eot_id)
        flat.extend(part)
    return np.array(flat, dtype=np.uint32)


# Almost no tokenizer has a token that spans two words; GPT-2's has none that spans any character and
# the white space after it, Qwen2's only signs and the line ends after them.
_BETWEEN_WORDS = re.compile(r"[^\W\d_](?= [^\W\d_])")
_BEFORE_BLANK = re.compile(r"[^\s](?=[ \t])|[^\W_](?=[\n\r])")
_SEARCHED_CHARACTERS = 4096


def safe_border(text: str) -> int:
    """Return the place near the end of ``text`` at which its two parts encode as the whole does.

    The place is between two words if there is one, else before white space, else (in a text without white
    space) the end.
    """
    for begin in (max(0, len(text) - _SEARCHED_CHARACTERS), 0):
        for pattern in (_BETWEEN_WORDS, _BEFORE_BLANK):
            border = max((match.end() for match in pattern.finditer(text, begin)), default=0)
            if border:
                return border
    return len(text)
