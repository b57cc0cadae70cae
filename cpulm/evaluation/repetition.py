"""How varied texts are: the share of distinct n-grams, and how much each text repeats itself.

Computed over words and signs, not over tokens, so models with different vocabularies are comparable.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LENGTHS = (1, 2, 3, 4)
REPETITION_LENGTH = 4

_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Variety:
    """The variety of some texts together.

    Attributes:
        distinct: distinct n-grams over all n-grams, by n (https://arxiv.org/abs/1510.03055).
        repetition: the share of a text's 4-grams that occurred in it before, the mean over the texts
            (seq-rep-4 of https://arxiv.org/abs/1908.04319); None if every text is too short.
    """

    distinct: dict[int, float]
    repetition: float | None


def variety(texts: Sequence[str]) -> Variety:
    """Return the variety of ``texts``; n-grams do not cross from one text to the next."""
    words = [_WORD_OR_SIGN.findall(text) for text in texts]
    distinct = {}
    for n in LENGTHS:
        grams = [gram for text in words for gram in _ngrams(text, n)]
        if grams:
            distinct[n] = len(set(grams)) / len(grams)
    shares = [
        1 - len(set(grams)) / len(grams) for text in words if (grams := _ngrams(text, REPETITION_LENGTH))
    ]
    return Variety(distinct, sum(shares) / len(shares) if shares else None)


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[shift:] for shift in range(n)), strict=False))
