"""A tokenizer from the metadata of a GGUF file: the inverse of ``cpulm.export.gguf_vocabulary``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cpulm.data.splitting import EXPRESSIONS
from cpulm.data.tokenizer import UNKNOWN, Tokenizer, byte_letters
from cpulm.errors import DataError
from cpulm.pretrained.gguf_names import NO_TEXT, PRE_TOKENIZERS, WORD_BEGINS, TokenType
from cpulm.pretrained.sentencepiece_vocabulary import sentencepiece_parts
from cpulm.typed_json import shown

Json = dict[str, Any]

_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_BYTE_LEVEL: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_DECODER: Json = {**_BYTE_LEVEL, "add_prefix_space": True, "use_regex": True}
_HINT = "give the model's folder of transformers instead"
_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)


def tokenizer_of(values: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a file's metadata describe.

    Raises:
        DataError: if they are damaged, or of a tokenizer that cpulm does not know.
    """
    model = _text(values.get("tokenizer.ggml.model"))
    tokens = values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, bytes) for token in tokens):
        raise DataError("it has no vocabulary (tokenizer.ggml.tokens)", _HINT)
    kinds = values.get("tokenizer.ggml.token_type")
    kinds = kinds if isinstance(kinds, list) else [TokenType.NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise DataError(f"it has {len(tokens):,} tokens and {len(kinds):,} types of tokens")
    builders = {"gpt2": _byte_level_bpe, "llama": _sentencepiece, "rwkv": _longest_match, "t5": _words}
    if model not in builders:
        raise DataError(f"its tokenizer is {shown(model)}, which cpulm does not read", _HINT)
    try:
        parts = builders[model](tokens, kinds, values)
        begin = values.get("tokenizer.ggml.bos_token_id")
        begins = values.get("tokenizer.ggml.add_bos_token", model == "llama")
        if begins and type(begin) is int and 0 <= begin < len(tokens):
            parts["post_processor"] = _beginning_with(tokens[begin].decode(), begin)
        return Tokenizer.from_json(json.dumps(parts))
    except UnicodeDecodeError as error:
        raise DataError(f"a token of its vocabulary is not UTF-8: {error.object!r:.60}", _HINT) from error


def _byte_level_bpe(tokens: list[bytes], kinds: list[int], values: Mapping[str, Any]) -> Json:
    pre = _text(values.get("tokenizer.ggml.pre"))
    pattern = next((name for name, theirs in PRE_TOKENIZERS.items() if theirs == pre), None)
    splitter: Json
    if pre == "smollm":
        digits = {"type": "Digits", "individual_digits": True}
        splitter = {"type": "Sequence", "pretokenizers": [digits, {**_BYTE_LEVEL, "use_regex": True}]}
    elif pattern is None:
        raise DataError(f"its tokenizer splits text as {shown(pre)}, which cpulm does not know", _HINT)
    elif pattern == "gpt2":
        splitter = {**_BYTE_LEVEL, "use_regex": True}
    else:
        regex = {"Regex": EXPRESSIONS[pattern]}
        split = {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}
        splitter = {"type": "Sequence", "pretokenizers": [split, {**_BYTE_LEVEL, "use_regex": False}]}
    merges = values.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(merge, bytes) for merge in merges):
        raise DataError("its vocabulary has no merges (tokenizer.ggml.merges)", _HINT)
    added = _added(tokens, kinds)
    first_added = min((token["id"] for token in added), default=len(tokens))
    are_last = all(kind != TokenType.NORMAL for kind in kinds[first_added:])
    vocab = {
        token.decode(): number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == TokenType.NORMAL or (kind in _ADDED and not are_last)
    }
    model = {"type": "BPE", "vocab": vocab, "merges": [merge.decode() for merge in merges]}
    return _parts(model, added, splitter, _DECODER)


def _sentencepiece(tokens: list[bytes], kinds: list[int], values: Mapping[str, Any]) -> Json:
    scores = values.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise DataError("its vocabulary has no score for each token (tokenizer.ggml.scores)", _HINT)
    texts = [token.decode() for token in tokens]
    unknown = next((text for text, kind in zip(texts, kinds, strict=True) if kind == TokenType.UNKNOWN), None)
    spoken = {
        text: float(score)
        for text, score, kind in zip(texts, scores, kinds, strict=True)
        if kind == TokenType.NORMAL
    }
    return sentencepiece_parts(
        {text: number for number, text in enumerate(texts)},
        spoken,
        unknown,
        _added(tokens, kinds),
        space_first=bool(values.get("tokenizer.ggml.add_space_prefix", True)),
    )


def _longest_match(tokens: list[bytes], kinds: list[int], _values: Mapping[str, Any]) -> Json:
    """A vocabulary of bytes or of characters that cpulm exported."""
    texts = [_ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), token) for token in tokens]
    added = _added([text.removeprefix(NO_TEXT) for text in texts], kinds)
    single = [text for text, kind in zip(texts, kinds, strict=True) if kind not in _ADDED]
    if single == [bytes([value]) for value in range(256)]:
        vocab = {letter: value for value, letter in enumerate(byte_letters())}
        splitter = {**_BYTE_LEVEL, "use_regex": False}
        return _parts(_bpe(vocab), added, splitter, _DECODER)
    characters = [text.decode() for text in single]
    if any(len(character) != 1 for character in characters):
        raise DataError("its tokenizer is 'rwkv' with tokens of several characters", _HINT)
    vocab = {character: number for number, character in enumerate(characters)}
    return _parts(_bpe(vocab), added, None, {"type": "Fuse"})


def _words(tokens: list[bytes], kinds: list[int], _values: Mapping[str, Any]) -> Json:
    """A vocabulary of words that cpulm exported."""
    vocab = {}
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        word = token.decode()
        if kind == TokenType.UNKNOWN:
            vocab[UNKNOWN] = number
        elif kind == TokenType.NORMAL and word.startswith(WORD_BEGINS):
            vocab[word.removeprefix(WORD_BEGINS)] = number
        elif kind not in _ADDED:
            raise DataError("its tokenizer is 't5' with tokens that are not words", _HINT)
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN}
    return _parts(model, _added(tokens, kinds), {"type": "WhitespaceSplit"}, None)


def _bpe(vocab: Mapping[str, int]) -> Json:
    return {"type": "BPE", "vocab": vocab, "merges": []}


def _beginning_with(text: str, number: int) -> Json:
    """What puts a token before every text."""
    first: list[Json] = [
        {"SpecialToken": {"id": text, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]}},
    }


def _added(tokens: list[bytes], kinds: list[int]) -> list[Json]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": number, "content": token.decode(), **flags, "special": kind == TokenType.CONTROL}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in _ADDED
    ]


def _parts(model: Json, added: list[Json], splitter: Json | None, decoder: Json | None) -> Json:
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": splitter,
        "decoder": decoder,
        "model": {"dropout": None, **model} if model["type"] == "BPE" else model,
    }


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None
