"""Embeddings: nearest neighbours of tokens, and a map of the tokens in a plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import SettingsError
from cpulm.inspection.model_report import EmbeddingMap, Floats, Ints, Neighbour, Neighbours
from cpulm.inspection.tokens import KINDS, TokenTexts

MOST_ON_MAP = 800
_NEAREST = 8
_CHOSEN = 12
_SHORTEST_WORD = 3


@torch.inference_mode()
def neighbours(
    embedding: Tensor, chosen: Sequence[int], candidates: Ints, texts: TokenTexts
) -> tuple[Neighbours, ...]:
    """For each chosen token, find the tokens whose embeddings have the largest cosine with its embedding.

    Args:
        embedding: [V, n_embd].
        chosen: ids.
        candidates: ids among which neighbours are searched.
    """
    rows = torch.from_numpy(candidates).to(embedding.device)
    directions = torch.nn.functional.normalize(embedding[rows].float(), dim=-1)
    own = torch.nn.functional.normalize(embedding[list(chosen)].float(), dim=-1)
    cosines = own @ directions.mT
    found = []
    for token, row in zip(chosen, cosines, strict=True):
        row[rows == token] = -torch.inf
        top = row.topk(min(_NEAREST, int((rows != token).sum())))
        pairs = zip(rows[top.indices].tolist(), top.values.tolist(), strict=True)
        nearest = tuple(Neighbour(texts.text(each), value) for each, value in pairs)
        found.append(Neighbours(texts.text(token), nearest))
    return tuple(found)


def chosen_tokens(by_frequency: Ints, texts: TokenTexts) -> list[int]:
    """Choose tokens whose neighbours are worth showing: the most frequent words.

    Words after a blank come first, because a token without one may be the end of a word, then other tokens
    of letters, then any frequent tokens.
    """
    frequent = by_frequency[:MOST_ON_MAP].tolist()
    return sorted(frequent, key=lambda token: _rank(texts.text(token)))[:_CHOSEN]


def _rank(text: str) -> int:
    word = text.strip()
    if not word.isalpha() or len(word) < _SHORTEST_WORD:
        return 2
    return 0 if text[0].isspace() else 1


def token_of(word: str, tokenizer: Tokenizer, texts: TokenTexts) -> int:
    """Return the single token for ``word``, by itself or after a blank.

    Raises:
        SettingsError: if the vocabulary has no such token.
    """
    for text in (word, f" {word}"):
        ids = tokenizer.encode(text)
        if len(ids) == 1 and texts.text(ids[0]).strip() == word.strip():
            return ids[0]
    parts = ", ".join(repr(part) for part in texts.texts(tokenizer.encode(word)))
    raise SettingsError(f"{word!r} is not a single token; its tokens are: {parts}", "choose one of them")


@torch.inference_mode()
def embedding_map(embedding: Tensor, by_frequency: Ints, texts: TokenTexts) -> EmbeddingMap:
    """Map the most frequent tokens onto the plane of their two principal components.

    Args:
        embedding: [V, n_embd].
        by_frequency: ids, the most frequent first.
    """
    tokens = by_frequency[:MOST_ON_MAP]
    rows = embedding[torch.from_numpy(tokens).to(embedding.device)].float().cpu()
    rows = rows - rows.mean(0)
    variances, directions = torch.linalg.eigh(rows.mT @ rows)  # ascending
    x, y = (_along(rows, directions, number) for number in (-1, -2))
    total = float(variances.sum().clamp(min=torch.finfo(variances.dtype).tiny))
    return EmbeddingMap(
        tokens=texts.texts(tokens),
        kinds=tuple(KINDS[texts.kinds(tokens[at : at + 1])[0]] for at in range(len(tokens))),
        x=x,
        y=y,
        explained=(float(variances[-1]) / total, float(variances[-2:-1].sum()) / total),
    )


def _along(rows: Tensor, directions: Tensor, number: int) -> Floats:
    """Coordinates [N] along one component; the sign makes the farthest point positive."""
    if -number > directions.size(1):
        return np.zeros(len(rows))
    values: Floats = (rows @ directions[:, number]).numpy().astype(np.float64)
    return values if values[np.abs(values).argmax()] >= 0 else -values
