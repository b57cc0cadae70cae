"""Scores a model on a text; each figure has its standard error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cpulm.data.encoder import unknown_id
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError
from cpulm.evaluation.scoring import TOKENS_PER_BATCH, score
from cpulm.evaluation.standard_error import Figure, Units, ratio
from cpulm.evaluation.text_tokens import Text, bytes_of_tokens, first_tokens
from cpulm.evaluation.text_windows import Batch, Protocol, batches, windows
from cpulm.evaluation.validation_loss import Evaluation
from cpulm.events import Listener
from cpulm.execution.adaptive_threads import threads_for_model
from cpulm.execution.runtime import Runtime
from cpulm.model.transformer import Transformer
from cpulm.progress import Stage

FEWEST_DOCUMENTS = 30
"""With at least this many documents the standard errors are over documents, else over blocks of text."""

MOST_BLOCKS = 64
"""Neighbouring blocks are merged until there are at most this many: long ones hardly depend on each other,
and over thirty are enough to estimate an error."""

_NATS, _TARGETS, _HITS, _BYTES = range(4)


@dataclass(frozen=True)
class TextScore:
    """A model's score on a text.

    ``loss`` is in nats per token; ``accuracy`` is the share of tokens that were the likeliest one.

    Attributes:
        tokens: of the text that counts in the loss; ``scored`` of them count: all but the first of each
            stream.
        unit: what the standard errors are over: ``documents`` or ``blocks``, ``units`` of them; a block has
            about ``block_tokens`` tokens.
        seconds: for reading, encoding and scoring.
        text_lost: the share of the text, in bytes, that the tokenizer loses; above 0, bits per byte are not
            comparable with those of other tokenizers.
        unknown: the share of tokens for words that the vocabulary lacks; None if it can encode every text.
    """

    loss: Figure
    perplexity: Figure
    bits_per_byte: Figure
    accuracy: Figure
    tokens: int
    scored: int
    documents: int
    text_bytes: int
    bytes_per_token: float
    unit: str
    units: int
    block_tokens: int | None
    seconds: float
    text_lost: float
    unknown: float | None
    sums: npt.NDArray[np.float64] = field(repr=False, compare=False)

    @property
    def tokens_per_second(self) -> float:
        return self.scored / self.seconds if self.seconds else 0.0

    def record(self) -> dict[str, Any]:
        """Everything but the sums, for JSON."""
        names = (name for name in self.__dataclass_fields__ if name != "sums")
        return {
            **{name: getattr(self, name) for name in names},
            "tokens_per_second": self.tokens_per_second,
        }


class _Reading:
    """Passes on the chunks of a text and counts them."""

    def __init__(self, text: Text, limit: int | None, tokenizer: Tokenizer) -> None:
        self.tokens, self.text_bytes, self.documents, self.unknown, self.read = 0, 0.0, 0, 0, 0.0
        self.lost_bytes = 0.0
        self._text, self._limit = text, limit
        self._eot_id, self._unknown_id = tokenizer.eot_id, unknown_id(tokenizer)
        self._ended = True

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        for chunk in first_tokens(self._text.chunks(), self._limit):
            self.read += chunk.read
            if len(chunk.ids):
                counted = chunk.counted_ids
                self.tokens += len(counted)
                self.text_bytes += chunk.text_bytes
                self.lost_bytes += chunk.lost_bytes
                self.documents += int(np.count_nonzero(chunk.ids == self._eot_id))
                self._ended = bool(chunk.ids[-1] == self._eot_id)
                if self._unknown_id is not None:
                    self.unknown += int(np.count_nonzero(counted == self._unknown_id))
                ids = chunk.ids.astype(np.int64)
                yield ids if chunk.counts is None else np.where(chunk.counts, ids, ~ids)
        self.documents += not self._ended

    def stage(self, name: str, emit: Listener, should_stop: Callable[[], bool]) -> Stage:
        """The stage for the progress that :meth:`done` returns."""
        total, unit = self._text.total, self._text.unit
        if self._limit is not None:
            total, unit = self._limit if unit == "bytes" else min(self._limit, total), "tokens"
        return Stage(name, total, unit, emit, should_stop)

    def done(self, scored: int) -> float:
        """The progress with this many tokens scored, in the unit of its stage.

        A chunk is read at once and scored in many batches, so its bytes count in proportion to those.
        """
        return scored if self._limit is not None else self.read * scored / self.tokens


def score_text(
    model: Transformer,
    tokenizer: Tokenizer,
    text: Text,
    protocol: Protocol,
    runtime: Runtime,
    *,
    name: str,
    max_tokens: int | None,
    emit: Listener,
    should_stop: Callable[[], bool],
) -> TextScore:
    """Read ``text`` once and score it.

    Args:
        name: of the model, for the progress display.
        max_tokens: read at most this many from the beginning of the text.

    Raises:
        DataError: if the text has no token to predict or cannot be read, or the model's outputs are not
            finite.
        StoppedError: if ``should_stop`` returned True.
    """
    began = time.perf_counter()
    lengths = bytes_of_tokens(tokenizer)
    by_document, by_block = Units(4), Units(4)
    reading, scored = _Reading(text, max_tokens, tokenizer), 0
    with (
        reading.stage(f"evaluating {name}", emit, should_stop) as stage,
        threads_for_model(model) as threads,
    ):
        for batch in threads.each(batches(windows(reading, tokenizer.eot_id, protocol), TOKENS_PER_BATCH)):
            values = _scored(model, batch, lengths, runtime)
            by_document.add(batch.documents, values)
            by_block.add(batch.places // protocol.block_size, values)
            scored += len(values)
            stage.advance(reading.done(scored) - stage.done)
    sums = by_document.sums()
    if not len(sums):
        raise DataError(
            f"{text.name} has {_amount(reading.tokens)} of text: nothing to predict", "give more text"
        )
    if not math.isfinite(float(sums[:, _NATS].sum())):
        raise DataError(
            f"{name} computes values that are not finite: its training diverged",
            "evaluate an earlier checkpoint of the run",
        )
    unit, block_tokens = "documents", None
    if len(sums) < FEWEST_DOCUMENTS:
        unit, sums = "blocks", by_block.sums(MOST_BLOCKS)
        block_tokens = round(float(sums[:, _TARGETS].max()))
    return _figures(sums, reading, unit, block_tokens, time.perf_counter() - began)


def _scored(
    model: Transformer, batch: Batch, lengths: npt.NDArray[np.float64], runtime: Runtime
) -> npt.NDArray[np.float64]:
    """Nats, one, hit and bytes of each scored target, [N, 4]."""
    losses, hits = score(model, batch.inputs, batch.targets, runtime)
    targets = batch.targets.numpy()
    return np.stack((losses, np.ones(len(losses)), hits, lengths[targets[targets >= 0]]), axis=1)


def _figures(
    sums: npt.NDArray[np.float64], reading: _Reading, unit: str, block_tokens: int | None, seconds: float
) -> TextScore:
    nats, targets, hits, text_bytes = sums.T
    loss = ratio(nats, targets)
    scored = round(float(targets.sum()))
    # The figures that a run's validations also have are computed by the same code.
    whole = Evaluation(loss.value, scored, seconds)
    bytes_per_token = reading.text_bytes / reading.tokens
    bits_error = _error_of_bits_per_byte(nats, text_bytes, bytes_per_token * scored)
    spread = loss.standard_error
    return TextScore(
        loss=loss,
        perplexity=Figure(whole.perplexity, None if spread is None else whole.perplexity * spread),
        bits_per_byte=Figure(whole.bits_per_byte(bytes_per_token), bits_error),
        accuracy=ratio(hits, targets),
        tokens=reading.tokens,
        scored=scored,
        documents=reading.documents,
        text_bytes=round(reading.text_bytes),
        bytes_per_token=bytes_per_token,
        unit=unit,
        units=len(sums),
        block_tokens=block_tokens,
        seconds=seconds,
        text_lost=reading.lost_bytes / max(1.0, reading.text_bytes),
        unknown=None if reading._unknown_id is None else reading.unknown / reading.tokens,
        sums=sums,
    )


def difference(one: TextScore, other: TextScore) -> Figure | None:
    """Return by how many bits per byte ``one`` is worse than ``other`` on the same text.

    The two are compared unit by unit, so text that is hard for both does not blur their difference. None if
    their units are not the same passages of text.
    """
    same_blocks = one.scored == other.scored and np.array_equal(
        one.sums[:, _TARGETS], other.sums[:, _TARGETS]
    )
    same_documents = one.documents == other.documents and len(one.sums) == len(other.sums)
    if one.unit != other.unit or not (same_documents if one.unit == "documents" else same_blocks):
        return None
    nats = one.sums[:, _NATS] - other.sums[:, _NATS]
    error = _error_of_bits_per_byte(nats, other.sums[:, _BYTES], other.text_bytes)
    return Figure(one.bits_per_byte.value - other.bits_per_byte.value, error)


def _error_of_bits_per_byte(
    nats: npt.NDArray[np.float64], text_bytes: npt.NDArray[np.float64], total_bytes: float
) -> float | None:
    """The standard error over units of ``nats`` and ``text_bytes`` [k]; bytes are scaled to ``total_bytes``.

    None if the scored tokens represent no bytes, such as if only the end of a text is predicted.
    """
    own = float(text_bytes.sum())
    if own == 0:
        return None
    return ratio(nats / math.log(2), text_bytes * (total_bytes / own)).standard_error


def _amount(tokens: int) -> str:
    return "no token" if tokens == 0 else f"{tokens} token{'' if tokens == 1 else 's'}"
