"""Cuts text of any length into windows that fit the model; every token is scored exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpulm.data.loader import IGNORED

Ids: TypeAlias = npt.NDArray[Any]
Ints: TypeAlias = npt.NDArray[np.int64]

_POOL_BATCHES = 8
"""Windows are sorted by length within this many batches, so that little of a batch is padding."""


@dataclass(frozen=True)
class Protocol:
    """How much of the text a model sees before each scored token.

    A window begins every ``stride`` tokens and holds up to ``block_size``; only its tokens that no earlier
    window has scored count. So a token is scored with at least ``block_size - stride`` tokens before it,
    except for the first ones of a text, which have all there are.

    Attributes:
        apart: each document starts with an empty context; else all documents are one stream, as in training.
        first_token: the token put before each document if they are apart, so that the model's first
            prediction counts too; None for none.
    """

    block_size: int
    stride: int
    apart: bool = False
    first_token: int | None = None


@dataclass(frozen=True)
class Window:
    """A window of text as the model sees it.

    Attributes:
        tokens: int64 [n + 1], n at most the block size: the inputs and the last one's target; ``~id`` for a
            token that does not count as a target.
        first: the first input whose target is scored.
        documents: int64 [n - first], the number of the document of each scored target.
        place: how many targets earlier windows scored.
    """

    tokens: Ints
    first: int
    documents: Ints
    place: int


@dataclass(frozen=True)
class Batch:
    """A batch of windows.

    Attributes:
        inputs: int64 [B, T].
        targets: int64 [B, T]; -100 for those not scored.
        documents: int64 [N], of the scored targets in row-major order.
        places: int64 [N], their numbers among all scored targets of the text.
    """

    inputs: Tensor
    targets: Tensor
    documents: Ints
    places: Ints


def windows(chunks: Iterable[Ids], eot_id: int, protocol: Protocol) -> Iterator[Window]:
    """Cut a text, given as chunks of any length with ``eot_id`` after each document.

    ``~id`` stands for a token that does not count as a target.
    """
    cutter = _Cutter(protocol)
    beginning = np.array([] if protocol.first_token is None else [protocol.first_token], dtype=np.int64)
    document, begun = 0, False
    for chunk in chunks:
        ids = chunk.astype(np.int64)
        ends = (ids == eot_id) | (ids == ~eot_id)
        if not protocol.apart:
            passed = np.cumsum(ends)
            # The end-of-text token belongs to the document it ends.
            yield from cutter.push(ids, document + passed - ends)
            document += int(passed[-1]) if len(passed) else 0
            continue
        for part in np.split(ids, np.flatnonzero(ends) + 1):
            if not len(part):
                continue
            if not begun:
                part, begun = np.concatenate([beginning, part]), True
            yield from cutter.push(part, np.full(len(part), document))
            if part[-1] in (eot_id, ~eot_id):
                yield from cutter.finish()
                document, begun = document + 1, False
    yield from cutter.finish()


class _Cutter:
    """Cuts windows from one stream of tokens that comes in parts; after :meth:`finish` from the next one."""

    def __init__(self, protocol: Protocol) -> None:
        self._block, self._stride = protocol.block_size, protocol.stride
        self._place = 0
        self._begin()

    def _begin(self) -> None:
        self._tokens = self._documents = np.zeros(0, dtype=np.int64)
        self._scored = 1  # nothing precedes the first token, so it is not a target

    def push(self, tokens: Ints, documents: Ints) -> Iterator[Window]:
        """Add the next tokens; yield the windows that are full."""
        self._tokens = np.concatenate([self._tokens, tokens])
        self._documents = np.concatenate([self._documents, documents])
        begin = 0
        while begin + self._block < len(self._tokens):
            yield self._window(begin, begin + self._block + 1)
            begin += self._stride
        self._tokens, self._documents = self._tokens[begin:], self._documents[begin:]
        self._scored -= begin

    def finish(self) -> Iterator[Window]:
        """End the stream; yield the tokens that no window has scored yet."""
        if self._scored < len(self._tokens):
            yield self._window(0, len(self._tokens))
        self._begin()

    def _window(self, begin: int, end: int) -> Window:
        window = Window(
            tokens=self._tokens[begin:end],
            first=self._scored - begin - 1,
            documents=self._documents[self._scored : end],
            place=self._place,
        )
        self._place += end - self._scored
        self._scored = end
        return window


def batches(found: Iterable[Window], tokens_per_batch: int) -> Iterator[Batch]:
    """Batch windows of similar length, about ``tokens_per_batch`` tokens per batch."""
    pool: list[Window] = []
    pooled = 0
    for window in found:
        pool.append(window)
        pooled += len(window.tokens)
        if pooled >= _POOL_BATCHES * tokens_per_batch:
            yield from _sorted_batches(pool, tokens_per_batch)
            pool, pooled = [], 0
    yield from _sorted_batches(pool, tokens_per_batch)


def _sorted_batches(pool: list[Window], tokens_per_batch: int) -> Iterator[Batch]:
    pool = sorted(pool, key=lambda window: -len(window.tokens))
    while pool:
        rows = max(1, tokens_per_batch // (len(pool[0].tokens) - 1))
        yield _batch(pool[:rows])
        pool = pool[rows:]


def _batch(rows: list[Window]) -> Batch:
    longest = max(len(row.tokens) for row in rows) - 1
    inputs = np.zeros((len(rows), longest), dtype=np.int64)
    targets = np.full((len(rows), longest), IGNORED, dtype=np.int64)
    documents, places = [], []
    for number, row in enumerate(rows):
        n, wanted = len(row.tokens) - 1, row.tokens[row.first + 1 :]
        counts = wanted >= 0
        inputs[number, :n] = np.where(row.tokens < 0, ~row.tokens, row.tokens)[:-1]
        targets[number, row.first : n] = np.where(counts, wanted, IGNORED)
        documents.append(row.documents[counts])
        places.append((row.place + np.arange(len(wanted)))[counts])
    return Batch(
        torch.from_numpy(inputs),
        torch.from_numpy(targets),
        np.concatenate(documents),
        np.concatenate(places),
    )
