"""What a look into a trained model found: plain numbers and texts, for a page, a terminal or JSON.

Nothing here needs torch. Losses and surprises are in nats per token, probabilities lie between 0 and 1. The
text of a token is what it stands for, blanks and line ends included; bytes that are no whole character are
spelled ``<0xE2>``, and special tokens by their names.
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
"""Significant digits of a number in JSON: more than a picture shows, and half the bytes of all of them."""

MOST_POSITIONS = 256
"""Points of the loss by position; in longer contexts neighbouring positions are taken together."""


@dataclass(frozen=True)
class PositionLoss:
    """The loss by the number of tokens that the model had before it: what the context is worth.

    All arrays have one entry per group of neighbouring positions, at most :data:`MOST_POSITIONS`.

    Attributes:
        first: the first position of the group; position 0 has one token of context.
        last: the last one.
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
        share: the part of all tokens that are of this kind.
        loss_share: the part of the whole loss that falls on them.
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
        surprise: ``-log p`` of each token given those before it; NaN if nothing stood before it.
        entropy: of the model's prediction at that place: the surprise that it expected; NaN likewise.
        rank: of the token among all, 1 for the one that the model held likeliest; 0 where nothing stood
            before it.
        alternatives: what the model held likeliest there, likeliest first; empty likewise.
    """

    tokens: tuple[str, ...]
    kinds: tuple[str, ...]
    surprise: Floats
    entropy: Floats
    rank: Ints
    alternatives: tuple[tuple[Alternative, ...], ...]


@dataclass(frozen=True)
class NextToken:
    """What the model expects behind a prompt.

    Attributes:
        entropy: of the distribution over the whole vocabulary.
        alternatives: the likeliest tokens, likeliest first.
    """

    prompt: str
    entropy: float
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class Head:
    """One attention head in figures, means over the prompt's tokens.

    Attributes:
        entropy: of where it looks, in nats; 0 where it looks at one token only.
        distance: tokens back to where it looks.
        to_self: attention to the token itself.
        to_previous: attention to the token before.
        to_first: attention to the first token, of the tokens from the third on.
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
    """Where each head looks from each token of the prompt.

    Attributes:
        tokens: the prompt's tokens, T of them.
        weights: [n_layer, n_head, T, T], float32: row t holds how much token t takes from each token up to
            itself; its entries sum to one, those behind t are zero.
        heads: every head in figures, layer by layer.
    """

    tokens: tuple[str, ...]
    weights: npt.NDArray[np.float32]
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class Neighbour:
    """A token near another one; ``cosine`` of the angle between their embeddings."""

    token: str
    cosine: float


@dataclass(frozen=True)
class Neighbours:
    """The tokens whose embeddings point most nearly where that of ``token`` does, nearest first."""

    token: str
    nearest: tuple[Neighbour, ...]


@dataclass(frozen=True)
class EmbeddingMap:
    """The embeddings of the most frequent tokens in the plane in which they differ most (PCA).

    Attributes:
        tokens: N of them, the most frequent first.
        kinds: of each.
        x: [N], as ``y``.
        explained: the part of their whole variance that lies along x, and along y.
    """

    tokens: tuple[str, ...]
    kinds: tuple[str, ...]
    x: Floats
    y: Floats
    explained: tuple[float, float]


@dataclass(frozen=True)
class Matrix:
    """One matrix of weights; fused projections are taken apart (``blocks.0.attn.q``, ``blocks.0.mlp.gate``).

    Attributes:
        norm: Frobenius.
        rms: the root mean square of its entries.
        spectral_norm: the largest singular value: the most by which it can stretch a vector.
        stable_rank: ``norm² / spectral_norm²``: about how many directions it really uses, of at most the
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

    Sizes are held against the root mean square of all activations of the layer.

    Attributes:
        never_active: units whose largest activation, in either direction, stays under a hundredth of it.
        constant: other units whose standard deviation stays under a hundredth of it.
        active_share: mean over the units of the share of tokens on which the activation is over a tenth of
            it.
        examples: numbers of units that are never active or constant, the first ones.
    """

    layer: int
    units: int
    never_active: int
    constant: int
    active_share: float
    examples: tuple[int, ...]


@dataclass(frozen=True)
class VocabularyUse:
    """Which tokens the model never met.

    Attributes:
        basis: how that was told: ``training data``, by counting it; ``embedding norm``, tokens whose row
            still has the norm that it was drawn with; ``unknown``, where neither can tell.
        note: the basis in words.
        unused: how many; None if unknown.
        rare: tokens that the training data has, but at most ten times; None without the data.
        examples: the unused ones, the first of them.
    """

    vocab_size: int
    basis: Literal["training data", "embedding norm", "unknown"]
    note: str
    unused: int | None
    rare: int | None
    examples: tuple[str, ...]


@dataclass(frozen=True)
class ModelLook:
    """Everything that was found in one model on one text.

    Attributes:
        checkpoint: what was looked into, as it was given: a checkpoint, or a run's folder.
        step: the update at which it was saved.
        text: what the model was shown: a file's name, or ``the validation set``.
        tokens: how many of its tokens were predicted, of the ``text_tokens`` that could be.
        loss: over these tokens, in windows side by side, as a validation measures it.
    """

    checkpoint: str
    step: int
    text: str
    tokens: int
    text_tokens: int
    loss: float
    bits_per_byte: float
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
        """All of it as lists, dicts, texts and numbers; numbers that are not finite become None.

        The rows of an attention map end with the token that looks: what lies behind it is zero.
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
