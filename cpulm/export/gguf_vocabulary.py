"""A tokenizer as the metadata of a GGUF file, which llama.cpp's own tokenizers read.

Byte-level BPE is llama.cpp's ``gpt2`` with the name of its splitting pattern. Single bytes and characters
are its ``rwkv``, which takes the longest token that begins at each place. Words are its ``t5``, which finds
the tokens that cover a text best.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cpulm.data.encoder import unknown_id
from cpulm.data.records.chat import CHAT_TOKENS, knows_chat
from cpulm.data.splitting import splitting_pattern
from cpulm.data.tokenizer import Tokenizer, byte_letters
from cpulm.errors import SettingsError
from cpulm.pretrained.gguf_names import NO_TEXT, PRE_TOKENIZERS, WORD_BEGINS, TokenType

_LETTERS = byte_letters()


@dataclass(frozen=True)
class GgufVocabulary:
    """A vocabulary in GGUF's terms.

    Attributes:
        model: the name of llama.cpp's tokenizer.
        tokens: one for each id.
        types: their types.
        merges: of byte-level BPE.
        pre: the name of its splitting pattern.
        unknown: the id for what the vocabulary lacks.
        limit: what llama.cpp does differently, in words; empty if nothing.
    """

    model: str
    tokens: list[bytes]
    types: list[TokenType]
    merges: list[str] = field(default_factory=list)
    pre: str = ""
    unknown: int | None = None
    limit: str = ""


def gguf_vocabulary(tokenizer: Tokenizer) -> GgufVocabulary:
    """Return the vocabulary of ``tokenizer`` for llama.cpp.

    Raises:
        SettingsError: if llama.cpp has no such tokenizer.
    """
    if tokenizer.kind == "byte":
        return _longest_match(tokenizer, {letter: bytes([value]) for value, letter in enumerate(_LETTERS)})
    if tokenizer.kind == "char":
        characters = tokenizer.parts["model"]["vocab"]
        return _longest_match(tokenizer, {character: character.encode() for character in characters})
    if tokenizer.kind == "word":
        return _words(tokenizer)
    pattern = splitting_pattern(tokenizer.parts)
    pre = PRE_TOKENIZERS.get(pattern) if pattern else None
    if pre is None:
        raise SettingsError(
            "data.tokenizer: llama.cpp has no tokenizer that splits text as this one does",
            "export it with `--to hf`, which takes every tokenizer",
        )
    return _byte_level_bpe(tokenizer, pre)


def _added(tokenizer: Tokenizer) -> dict[int, tuple[str, TokenType]]:
    """The added tokens: text and type by id."""
    return {
        number: (token.content, TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
        for number, token in tokenizer.inner.get_added_tokens_decoder().items()
    }


def _byte_level_bpe(tokenizer: Tokenizer, pre: str) -> GgufVocabulary:
    tokens = [f"[PAD{number}]".encode() for number in range(tokenizer.vocab_size)]
    types = [TokenType.UNUSED] * tokenizer.vocab_size
    for text, number in tokenizer.parts["model"]["vocab"].items():
        tokens[number], types[number] = text.encode(), TokenType.NORMAL
    for number, (text, kind) in _added(tokenizer).items():
        tokens[number], types[number] = text.encode(), kind
    merges: list[Any] = tokenizer.parts["model"]["merges"]
    joined = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return GgufVocabulary("gpt2", tokens, types, joined, pre)


def _longest_match(tokenizer: Tokenizer, texts: dict[str, bytes]) -> GgufVocabulary:
    vocabulary = tokenizer.parts["model"]["vocab"]
    tokens = [b""] * tokenizer.vocab_size
    types = [TokenType.NORMAL] * tokenizer.vocab_size
    for entry, number in vocabulary.items():
        tokens[number] = _escaped(texts[entry])
    # What a template of conversations writes must be found in its text; other names must not.
    named = {*CHAT_TOKENS, tokenizer.inner.id_to_token(tokenizer.eot_id)} if knows_chat(tokenizer) else ()
    for number, (text, kind) in _added(tokenizer).items():
        hidden = b"" if text in named else NO_TEXT
        tokens[number], types[number] = _escaped(hidden + text.encode()), kind
    limit = "llama.cpp cannot read a prompt with characters that the vocabulary lacks"
    return GgufVocabulary("rwkv", tokens, types, limit=limit if tokenizer.kind == "char" else "")


def _escaped(text: bytes) -> bytes:
    """``text`` as an ``rwkv`` vocabulary writes it: llama.cpp reads the escape sequences back."""
    return b"".join(
        bytes([byte]) if 0x20 < byte < 0x7F and byte != ord("\\") else b"\\x%02x" % byte for byte in text
    )


def _words(tokenizer: Tokenizer) -> GgufVocabulary:
    tokens = [b""] * tokenizer.vocab_size
    types = [TokenType.NORMAL] * tokenizer.vocab_size
    for word, number in tokenizer.parts["model"]["vocab"].items():
        tokens[number] = f"{WORD_BEGINS}{word}".encode()
    for number, (text, kind) in _added(tokenizer).items():
        tokens[number], types[number] = text.encode(), kind
    unknown = unknown_id(tokenizer)
    if unknown is not None:
        tokens[unknown], types[unknown] = b"<unk>", TokenType.UNKNOWN
    limit = "llama.cpp reads words between spaces as cpulm does, but other white space as a part of a word"
    return GgufVocabulary("t5", tokens, types, unknown=unknown, limit=limit)
