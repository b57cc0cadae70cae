"""The texts of one request: its prompt and rules, and their pieces while they are written."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from cpulm.data.records.chat import end_id, end_ids, knows_chat
from cpulm.data.tokenizer import Tokenizer
from cpulm.generation.chat import encode_chat
from cpulm.generation.generate import LENGTH, begin_texts, show_ends, show_tokens
from cpulm.generation.prompt import encode_prompt
from cpulm.generation.rules import grammar
from cpulm.generation.rules.rule import RuleSet
from cpulm.generation.sampling import Sampling
from cpulm.model.transformer import Transformer
from cpulm.serve.completion_request import ChatRequest, CompletionRequest, RequestError, TextRequest
from cpulm.units import format_bytes


@dataclass(frozen=True)
class ServedModel:
    """A loaded model.

    Attributes:
        name: as clients call it.
        records: whether it was trained on records, which begin with the end-of-text token.
        cache_bytes: memory that the keys and values of all texts may take.
    """

    name: str
    model: Transformer
    tokenizer: Tokenizer
    starts_documents: bool
    records: bool
    cache_bytes: int

    @property
    def talks(self) -> bool:
        """Whether it was trained on conversations."""
        return knows_chat(self.tokenizer)

    def require_memory(self, size_bytes: int) -> None:
        """Raise RequestError if the keys and values of one request would take more than there is."""
        if size_bytes > self.cache_bytes:
            raise RequestError(
                f"its keys and values would take {format_bytes(size_bytes)} of memory, and there are "
                f"{format_bytes(self.cache_bytes)}: ask for fewer texts (n) or tokens"
            )


@dataclass(frozen=True)
class ScoredToken:
    """A token, its log probability, and those of the likeliest tokens instead."""

    text: str
    logprob: float
    top: dict[str, float]


@dataclass(frozen=True)
class Begun:
    """The prompt was accepted."""

    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """The next characters of text number ``row``, and the tokens since the last piece, if they are asked for.

    ``finish_reason`` is None until the text has ended, in OpenAI's words; ``made_tokens`` count then.
    """

    row: int
    text: str
    tokens: list[ScoredToken]
    finish_reason: str | None = None
    made_tokens: int = 0

    def followed_by(self, other: Event) -> Piece | None:
        """Both pieces as one, if ``other`` is the next piece of the same text and does not end it."""
        if not isinstance(other, Piece) or (other.row, other.finish_reason) != (self.row, None):
            return None
        return Piece(self.row, self.text + other.text, self.tokens + other.tokens)


Event: TypeAlias = Begun | Piece | Exception | None
"""What a client is told; None: all texts have ended."""


class WrittenText:
    """The texts of a request, of which every piece is passed to ``emit``.

    Attributes:
        generation: what they are written by.

    Raises:
        RequestError: if the request cannot be answered.
        CpulmError: likewise.
    """

    def __init__(self, served: ServedModel, request: TextRequest, emit: Callable[[Event], None]) -> None:
        count = request.n or 1
        self._tokenizer, self._scores, self._emit = served.tokenizer, request.scores, emit
        self._scored: list[list[ScoredToken]] = [[] for _ in range(count)]
        ids, ends = _prompt_ids(served, request), None
        if isinstance(request, ChatRequest):
            ends = end_ids(served.tokenizer)
        self.generation, self._completions = begin_texts(
            served.model,
            served.tokenizer,
            ids,
            max_new_tokens=request.most_tokens,
            sampling=_sampling(request),
            seed=random.randrange(10**6) if request.seed is None else request.seed,
            num_samples=count,
            stop=request.stops,
            end_ids=ends,
            records=served.records or ends is not None,
            rules=_rules(served.tokenizer, request, count),
            on_step=None if request.scores is None else self._score,
        )
        served.require_memory(self.generation.cache.size_bytes)
        emit(Begun(len(ids)))

    def write(self, logits: Tensor) -> None:
        """Add the next token to each text, and end those that end; ``logits`` as of ``Generation.choose``."""
        tokens = self.generation.choose(logits)
        self._show(show_tokens(self.generation, self._completions, tokens))

    def end(self) -> None:
        """Tell the client how each text ended."""
        self._show(show_ends(self._completions))
        for row, completion in enumerate(self._completions):
            reason = "length" if completion.stop_reason == LENGTH else "stop"
            self._emit(Piece(row, "", self._taken(row), reason, len(completion.tokens)))

    def _show(self, pieces: Iterable[tuple[int, str]]) -> None:
        for row, text in pieces:
            self._emit(Piece(row, text, self._taken(row)))

    def _score(self, tokens: list[int | None], logits: Tensor) -> None:
        for row, one in _scored(self._tokenizer, tokens, logits, self._scores or 0):
            self._scored[row].append(one)

    def _taken(self, row: int) -> list[ScoredToken]:
        taken, self._scored[row] = self._scored[row], []
        return taken


def _prompt_ids(served: ServedModel, request: TextRequest) -> list[int]:
    ids, block = _encoded(served, request), served.model.settings.block_size
    if len(ids) > block:
        talks = isinstance(request, ChatRequest)
        raise RequestError(
            f"the {'conversation' if talks else 'prompt'} has {len(ids)} tokens; the model sees {block}",
            param="messages" if talks else "prompt",
            code="context_length_exceeded",
        )
    return ids


def _encoded(served: ServedModel, request: TextRequest) -> list[int]:
    if isinstance(request, ChatRequest):
        talk = request.talk
        _require_unicode("messages", *(message.text for message in talk))
        return encode_chat(served.tokenizer, talk)
    assert isinstance(request, CompletionRequest)
    prompt = request.one_prompt
    if isinstance(prompt, str):
        _require_unicode("prompt", prompt)
        starts, records = served.starts_documents, served.records
        return encode_prompt(served.tokenizer, prompt, starts_documents=starts, begins_records=records)
    ids = prompt or [served.tokenizer.eot_id]
    if not all(0 <= token < served.tokenizer.vocab_size for token in ids):
        raise RequestError(f"prompt: tokens are 0 to {served.tokenizer.vocab_size - 1}", param="prompt")
    return ids


def _require_unicode(param: str, *texts: str) -> None:
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise RequestError(f"{param}: half a surrogate pair is not text", param=param)


def _sampling(request: TextRequest) -> Sampling:
    return Sampling(
        temperature=0.8 if request.temperature is None else request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty or 1.0,
    )


def _rules(tokenizer: Tokenizer, request: TextRequest, count: int) -> RuleSet | None:
    schema = request.schema_text
    if schema is None:
        return None
    body = grammar.json_grammar(schema, "response_format")
    ends = end_id(tokenizer) if isinstance(request, ChatRequest) else None
    return RuleSet([grammar.GrammarRule(tokenizer, "response_format", body, count, ends)])


def _scored(
    tokenizer: Tokenizer, tokens: Sequence[int | None], logits: Tensor, most: int
) -> list[tuple[int, ScoredToken]]:
    """The tokens of one step with their row, from ``logits`` [B, V]."""
    logs = logits.float().log_softmax(-1)
    found = []
    for row, token in enumerate(tokens):
        if token is None or token in tokenizer.special_ids:
            continue
        likeliest = logs[row].topk(min(most, logs.size(1)))
        top = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        texts = {tokenizer.decode([other]): value for other, value in reversed(list(top))}
        found.append((row, ScoredToken(tokenizer.decode([token]), float(logs[row, token]), texts)))
    return found
