"""Inspects a trained model on one text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpulm.checkpoints.load_model import load_model
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError
from cpulm.events import Listener
from cpulm.generation.prompt import encode_prompt
from cpulm.inspection import attention, embeddings, loss_breakdown, text_pass, unused_tokens, weights
from cpulm.inspection import passage as passages
from cpulm.inspection.model_report import Ints, ModelReport
from cpulm.inspection.shown_text import ShownText, given_text, training_data_of, validation_text
from cpulm.inspection.text_pass import TextStatistics
from cpulm.inspection.tokens import TokenTexts
from cpulm.model.transformer import Transformer
from cpulm.progress import Stage

_PROMPT_TOKENS = 32
"""Tokens of the passage used as a prompt if none is given."""


@dataclass(frozen=True)
class InspectionRequest:
    """What to inspect a model with.

    Attributes:
        text: a text, or None for the validation set of the run.
        name: the text's name in messages.
        prompt: the prompt for attention and the next token; None: the start of the passage.
        words: single tokens whose nearest embeddings are requested; empty: frequent words.
    """

    text: str | None = None
    name: str = "the text"
    prompt: str | None = None
    words: Sequence[str] = ()


@dataclass(frozen=True)
class _Loaded:
    """A model and the text to inspect it on; ``data`` is None if a given text replaces it."""

    path: Path
    model: Transformer
    tokenizer: Tokenizer
    texts: TokenTexts
    starts_documents: bool
    begins_records: bool
    step: int
    data: TokenFolder | None
    text: ShownText


@dataclass(frozen=True)
class _EncodedRequest:
    """Prompt and words as tokens; None and empty if the user gave none."""

    prompt: list[int] | None
    words: list[int]


def inspect_model(
    path: Path,
    shown: InspectionRequest | None = None,
    *,
    emit: Listener = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
) -> ModelReport:
    """Inspect the model of a checkpoint, or the best one in a run's folder.

    At most :data:`cpulm.inspection.text_pass.MOST_TOKENS` tokens of the text are read, spread evenly over it,
    and fewer for a larger model; all training data is counted. Everything runs on the CPU.

    Args:
        emit: receives Progress events.
        should_stop: called about ten times a second.
        warn: called with a message for each damaged checkpoint that was skipped.

    Raises:
        DataError: if there is no model, it diverged, or there is no text to show it, or too little of it.
        SettingsError: if a word is not a single token.
        StoppedError: if ``should_stop`` returned True.
    """
    shown = shown or InspectionRequest()
    loaded = _load(path, shown, warn)
    asked = _encode_request(shown, loaded)
    block, tokens = loaded.model.settings.block_size, loaded.text.tokens
    starts = text_pass.window_starts(len(tokens), block, text_pass.max_windows(loaded.model))
    with Stage("reading the text", len(starts), "windows", emit, should_stop) as stage:
        stage.advance()
        read = text_pass.read(loaded.model, tokens, starts, stage.advance)
    if not math.isfinite(read.loss):
        raise _diverged(path)
    counts = None
    if loaded.data is not None:
        train = loaded.data.train
        with Stage("counting the training data", len(train), "tokens", emit, should_stop) as stage:
            counts = unused_tokens.count_tokens(train, loaded.model.vocab_size, stage.advance)
    with Stage("inspecting the weights", None, "", emit, should_stop) as stage:
        stage.advance()
        try:
            return _build_report(loaded, asked, read, counts)
        except RuntimeError as error:
            if type(error).__name__ != "_LinAlgError":  # of squares that overflow; torch exports no type
                raise
            raise _diverged(path) from error


def _diverged(path: Path) -> DataError:
    return DataError(
        f"{path} computes values that are not finite: its training diverged",
        "inspect an earlier checkpoint of the run",
    )


def _load(path: Path, shown: InspectionRequest, warn: Callable[[str], None]) -> _Loaded:
    model, tokenizer, checkpoint = load_model(path, warn=warn)
    starts_documents = checkpoint.starts_documents
    data: TokenFolder | None = None
    if shown.text is None:
        data = training_data_of(checkpoint)
        text = validation_text(data)
    else:
        text = given_text(shown.text, shown.name, tokenizer, starts_documents=starts_documents)
        with suppress(DataError):  # a given text replaces it, except for its counts
            data = training_data_of(checkpoint)
    return _Loaded(
        path,
        model,
        tokenizer,
        TokenTexts(tokenizer),
        starts_documents,
        checkpoint.settings.train.records,
        checkpoint.step,
        data,
        text,
    )


def _encode_request(shown: InspectionRequest, loaded: _Loaded) -> _EncodedRequest:
    words = [embeddings.token_of(word, loaded.tokenizer, loaded.texts) for word in shown.words]
    if shown.prompt is None:
        return _EncodedRequest(None, words)
    prompt = encode_prompt(
        loaded.tokenizer,
        shown.prompt,
        starts_documents=loaded.starts_documents,
        begins_records=loaded.begins_records,
    )
    return _EncodedRequest(prompt, words)


def _build_report(
    loaded: _Loaded, asked: _EncodedRequest, read: TextStatistics, counts: Ints | None
) -> ModelReport:
    """Assemble the report from the statistics and counts."""
    model, texts, text = loaded.model, loaded.texts, loaded.text
    frequent = _by_frequency(read, counts, model.vocab_size)
    passage_ids = _passage_of(read, text, model.settings.block_size)
    is_context = text.has_lead or not text.is_given
    prompt = asked.prompt or passage_ids[int(is_context) :][:_PROMPT_TOKENS]
    words = asked.words or embeddings.chosen_tokens(frequent, texts)
    return ModelReport(
        checkpoint=str(loaded.path),
        step=loaded.step,
        text=text.name,
        tokens=read.tokens,
        text_tokens=len(text.tokens) - 1,
        loss=read.loss,
        bits_per_byte=read.loss / math.log(2) / text.bytes_per_token,
        text_lost=text.text_lost,
        by_position=loss_breakdown.by_position(read),
        by_kind=loss_breakdown.by_kind(read, texts),
        passage=passages.passage(model, passage_ids, texts, shown_from=int(is_context)),
        next_token=passages.next_token(model, prompt, loaded.tokenizer.decode(prompt), texts),
        attention=attention.attention(model, prompt, texts),
        neighbours=embeddings.neighbours(model.wte.weight, words, frequent, texts),
        embedding_map=embeddings.embedding_map(model.wte.weight, frequent, texts),
        matrices=weights.matrices(model),
        units=read.units,
        vocabulary=unused_tokens.vocabulary_use(model, counts, texts),
    )


def _by_frequency(read: TextStatistics, counts: Ints | None, vocab_size: int) -> Ints:
    """Tokens, most frequent first: by the training data, or else by the text that was read."""
    if counts is not None:
        order: Ints = np.argsort(-counts, kind="stable")
        return order[counts[order] > 0]
    seen = np.bincount(read.targets[read.targets >= 0], minlength=vocab_size)
    return np.argsort(-seen, kind="stable")


def _passage_of(read: TextStatistics, text: ShownText, block_size: int) -> list[int]:
    """The start of a given text, or the validation window whose loss is nearest to the mean."""
    length = min(block_size, passages.MOST_TOKENS)
    start = 0
    if not text.is_given:
        whole = np.flatnonzero(read.targets[:, length - 1] >= 0)
        rows = whole if len(whole) else np.arange(len(read.starts))
        means = np.nanmean(read.surprise[rows, :length], axis=1)
        start = int(read.starts[rows[np.abs(means - read.loss).argmin()]])
    return [int(token) for token in text.tokens[start : start + length + 1]]
