"""The vocabularies of SentencePiece, as GGUF files have them, for the library ``tokenizers``.

Such files have a score for each token and no merges: those neighbours are joined first whose token has the
highest score. With the merges in that order the library joins the same ones; so does transformers with the
vocabularies of Llama 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

Json = dict[str, Any]


def merges_of(scores: dict[str, float]) -> list[list[str]]:
    """The merges of tokens with ``scores``, in their order."""
    numbers = {token: number for number, token in enumerate(scores)}
    ordered = sorted(scores, key=lambda token: (-scores[token], numbers[token]))
    return [list(pair) for token in ordered for pair in _pairs(token, numbers)]


def _pairs(token: str, numbers: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The two tokens that ``token`` may be made of."""
    parts = ((token[:length], token[length:]) for length in range(1, len(token)))
    known = ((left, right) for left, right in parts if left in numbers and right in numbers)
    yield from sorted(known, key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))


def sentencepiece_parts(
    vocab: dict[str, int],
    scores: dict[str, float],
    unknown: str | None,
    added: Sequence[Json],
    *,
    space_first: bool,
) -> Json:
    """The parts of a ``tokenizer.json``.

    Args:
        vocab: the number of every token, those of single bytes (``<0x0A>``) included.
        scores: of the tokens that text is made of.
        unknown: the token for what the vocabulary lacks.
        added: the special tokens.
        space_first: whether a text begins with a space that it does not have.
    """
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    first = [{"type": "Prepend", "prepend": SPACE}] if space_first else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space_first else []
    return {
        "version": "1.0",
        "added_tokens": list(added),
        "normalizer": {"type": "Sequence", "normalizers": [*first, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges_of(scores),
        },
    }
