"""The result of inspecting a trained model: plain numbers and texts, for a page, a terminal or JSON.

Nothing here needs torch. Losses and surprises are in nats per token, probabilities lie between 0 and 1. The
text of a token includes its blanks and line ends; bytes that are not a whole character are spelled
``<0xE2>``, and special tokens by their names.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

DIGITS = 4
"""Significant digits of a number in JSON: more than a chart shows, in half the bytes of full precision."""

MOST_POSITIONS = 256
"""Points of the loss by position; in longer contexts neighbouring positions are merged."""


@dataclass(frozen=True)
class PositionLoss:
    """The loss by the number of tokens of context: how much context helps.

    All arrays have one entry per group of neighbouring positions, at most :data:`MOST_POSITIONS`.

    Attributes:
        first: the first position of each group; position 0 has one token of context.
        last: the last position of each group.
        loss: nats per token.
        standard_error: of the loss, over the windows; NaN if there was only one window.
    """

    first: Ints
    last: Ints
    loss: Floats
    standard_error: Floats


@dataclass(frozen=True)
class KindLoss:
    """The loss over the tokens of one kind, such as ``word start`` or ``digits``.

    Attributes:
        share: the fraction of all tokens that are of this kind.
        loss_share: their fraction of the whole loss.
        standard_error: of the loss, over the tokens; NaN if there was only one.
        examples: the kind's most frequent tokens.
    """

    kind: str
    tokens: int
    loss: float
    standard_error: float
    share: float
    loss_share: float
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Alternative:
    """A token that might come next, and its probability."""

    token: str
    probability: float


@dataclass(frozen=True)
class Passage:
    """A stretch of the text, token by token. All sequences have one entry per token.

    Attributes:
        surprise: ``-log p`` of each token given those before it; NaN for a token without context.
        entropy: of the model's prediction for each token, which is the surprise it expected; NaN likewise.
        rank: of the token among all; 1 if the model ranked it most likely; 0 for a token without
            context.
        alternatives: the tokens that the model ranked most likely, likeliest first; empty likewise.
    """

    tokens: tuple[str, ...]
    kinds: tuple[str, ...]
    surprise: Floats
    entropy: Floats
    rank: Ints
    alternatives: tuple[tuple[Alternative, ...], ...]


@dataclass(frozen=True)
class NextToken:
    """What the model predicts after a prompt.

    Attributes:
        entropy: of the distribution over the whole vocabulary.
        alternatives: the likeliest tokens, likeliest first.
    """

    prompt: str
    entropy: float
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class Head:
    """Figures of one attention head, means over the prompt's tokens.

    Attributes:
        entropy: of the attention weights, in nats; 0 if all weight is on one token.
        distance: mean distance to the attended tokens, in tokens.
        to_self: weight on the token itself.
        to_previous: weight on the previous token.
        to_first: weight on the first token, from the third token on.
    """

    layer: int
    head: int
    entropy: float
    distance: float
    to_self: float
    to_previous: float
    to_first: float


@dataclass(frozen=True)
class AttentionMap:
    """The weights that each head gives from each token of the prompt.

    Attributes:
        tokens: the prompt's tokens, T of them.
        weights: [n_layer, n_head, T, T], float32: row t holds the weight of each token up to t for token t;
            its entries sum to one, those after t are zero.
        heads: figures of every head, layer by layer.
    """

    tokens: tuple[str, ...]
    weights: npt.NDArray[np.float32]
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class Neighbour:
    """A token near another one; ``cosine`` is that of the angle between their embeddings."""

    token: str
    cosine: float


@dataclass(frozen=True)
class Neighbours:
    """The tokens whose embeddings have the largest cosine with that of ``token``, nearest first."""

    token: str
    nearest: tuple[Neighbour, ...]


@dataclass(frozen=True)
class EmbeddingMap:
    """The embeddings of the most frequent tokens in the plane in which they differ most (PCA).

    Attributes:
        tokens: N of them, the most frequent first.
        kinds: of each.
        x: [N], as ``y``.
        explained: the fraction of their total variance along x and along y.
    """

    tokens: tuple[str, ...]
    kinds: tuple[str, ...]
    x: Floats
    y: Floats
    explained: tuple[float, float]


@dataclass(frozen=True)
class Matrix:
    """One matrix of weights; fused projections are split (``blocks.0.attn.q``, ``blocks.0.mlp.gate``).

    Attributes:
        norm: Frobenius.
        rms: the root mean square of its entries.
        spectral_norm: the largest singular value: the maximum factor by which it stretches a vector.
        stable_rank: ``norm² / spectral_norm²``: about how many directions it really uses, at most the
            shorter side.
    """

    name: str
    rows: int
    columns: int
    norm: float
    rms: float
    spectral_norm: float
    stable_rank: float


@dataclass(frozen=True)
class LayerUnits:
    """The hidden units of one layer's MLP on the text.

    Sizes are relative to the root mean square (RMS) of all activations of the layer.

    Attributes:
        never_active: units whose largest absolute activation stays under 0.01 RMS.
        constant: other units whose standard deviation stays under 0.01 RMS.
        active_share: fraction of tokens on which the activation is over 0.1 RMS, mean over the
            units.
        examples: the first numbers of units that are never active or constant.
    """

    layer: int
    units: int
    never_active: int
    constant: int
    active_share: float
    examples: tuple[int, ...]


@dataclass(frozen=True)
class VocabularyUse:
    """Which tokens the model never saw.

    Attributes:
        basis: how they were found: ``training data``, by counting it; ``embedding norm``, tokens whose row
            still has the norm of its initialization; ``unknown`` if neither is possible.
        note: the basis in words.
        unused: how many; None if unknown.
        rare: tokens that occur at least once but at most ten times in the training data; None without it.
        examples: the first unused tokens.
    """

    vocab_size: int
    basis: Literal["training data", "embedding norm", "unknown"]
    note: str
    unused: int | None
    rare: int | None
    examples: tuple[str, ...]


@dataclass(frozen=True)
class ModelReport:
    """The full report on one model on one text.

    Attributes:
        checkpoint: the inspected path, as it was given: a checkpoint, or a run's folder.
        step: the update at which it was saved.
        text: the text's name: a file's name, or ``the validation set``.
        tokens: how many tokens were predicted, of ``text_tokens`` possible ones.
        loss: over these tokens, in adjacent windows, as a validation measures it.
        text_lost: the share of the text, in bytes, that the tokenizer loses; above 0, bits per byte cannot be
            compared.
    """

    checkpoint: str
    step: int
    text: str
    tokens: int
    text_tokens: int
    loss: float
    bits_per_byte: float
    text_lost: float
    by_position: PositionLoss
    by_kind: tuple[KindLoss, ...]
    passage: Passage
    next_token: NextToken
    attention: AttentionMap
    neighbours: tuple[Neighbours, ...]
    embedding_map: EmbeddingMap
    matrices: tuple[Matrix, ...]
    units: tuple[LayerUnits, ...]
    vocabulary: VocabularyUse

    def to_json(self) -> dict[str, Any]:
        """Return all of it as lists, dicts, texts and numbers; numbers that are not finite become None.

        A row of an attention map ends with the attending token: the entries after it are zero.
        """
        record: dict[str, Any] = _plain(self)
        record["attention"]["weights"] = [
            [[_rounded(row[: at + 1], 3) for at, row in enumerate(head)] for head in layer]
            for layer in self.attention.weights
        ]
        return record


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        skipped = "weights" if isinstance(value, AttentionMap) else ""
        names = [spec.name for spec in dataclasses.fields(value) if spec.name != skipped]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def _rounded(row: npt.NDArray[np.float32], decimals: int) -> list[float]:
    return [round(value, decimals) for value in row.tolist()]
