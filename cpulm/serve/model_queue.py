"""The texts that clients wait for, written one request after another by one thread."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from cpulm.data.records.chat import end_id, end_ids, knows_chat
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import CpulmError
from cpulm.execution.adaptive_threads import threads_for_model
from cpulm.generation.chat import encode_chat
from cpulm.generation.generate import LENGTH, Completion, begin_texts, encode_prompt, stream_text
from cpulm.generation.rules import grammar
from cpulm.generation.rules.rule import RuleSet
from cpulm.generation.sampling import Sampling
from cpulm.model.transformer import Transformer
from cpulm.serve.completion_request import ChatRequest, CompletionRequest, RequestError, TextRequest

MOST_JOBS = 16
"""Requests that are written or wait; the next one is told to come back."""


@dataclass(frozen=True)
class ServedModel:
    """A loaded model; ``records``: it was trained on records, which begin with the end-of-text token."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    starts_documents: bool
    records: bool

    @property
    def talks(self) -> bool:
        """Whether it was trained on conversations."""
        return knows_chat(self.tokenizer)


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


Event = Begun | Piece | Exception | None


class _LeftError(Exception):
    """The client has left."""


class Job:
    """One request on its way; ``events`` end with None, or with an error."""

    def __init__(self, request: TextRequest) -> None:
        self.request = request
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._left = threading.Event()
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """Write no more."""
        self._left.set()

    def emit(self, event: Event) -> None:
        """Pass an event on, from the thread that writes."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def require_client(self) -> None:
        """Raises _LeftError once nobody waits."""
        if self._left.is_set():
            raise _LeftError


class ModelQueue:
    """Writes for one request after another; ``n`` texts of one request share a cache."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        # What a thread of its own computes with is not what the main thread was given
        threads = torch.get_num_threads()
        self._thread = ThreadPoolExecutor(1, "cpulm-serve", torch.set_num_threads, (threads,))
        self._jobs: set[Job] = set()

    def submit(self, request: TextRequest) -> Job:
        """Put a request in the queue.

        Raises:
            RequestError: if it is full.
        """
        if len(self._jobs) >= MOST_JOBS:
            raise RequestError("too many requests wait; try again later", 429, code="rate_limit_exceeded")
        job = Job(request)
        self._jobs.add(job)
        self._thread.submit(self._run, job)
        return job

    def close(self) -> None:
        """Cancel all that is written or waits."""
        for job in list(self._jobs):
            job.cancel()
        self._thread.shutdown(wait=True)

    def _run(self, job: Job) -> None:
        try:
            job.require_client()
            self._write(job)
            job.emit(None)
        except _LeftError:
            pass
        except CpulmError as error:
            hint = f": {error.hint}" if error.hint else ""
            job.emit(RequestError(f"{error.message}{hint}"))
        except Exception as error:
            job.emit(error)
        finally:
            self._jobs.discard(job)

    def _write(self, job: Job) -> None:
        served, request = self.served, job.request
        count = request.n or 1
        scored: list[list[ScoredToken]] = [[] for _ in range(count)]

        def on_step(tokens: list[int | None], logits: Tensor) -> None:
            job.require_client()
            if request.scores is not None:
                for row, one in _scored(served.tokenizer, tokens, logits, request.scores):
                    scored[row].append(one)

        ids, ends = self._prompt_ids(request), None
        if isinstance(request, ChatRequest):
            ends = end_ids(served.tokenizer)
        generation, completions = begin_texts(
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
            on_step=on_step,
        )
        job.emit(Begun(len(ids)))
        with threads_for_model(served.model, count) as threads:
            for row, text in threads.each(stream_text(generation, completions)):
                job.emit(Piece(row, text, _taken(scored[row])))
        for row, completion in enumerate(completions):
            job.emit(_end(row, completion, _taken(scored[row])))

    def _prompt_ids(self, request: TextRequest) -> list[int]:
        ids, block = self._encoded(request), self.served.model.settings.block_size
        if len(ids) > block:
            talks = isinstance(request, ChatRequest)
            raise RequestError(
                f"the {'conversation' if talks else 'prompt'} has {len(ids)} tokens; the model sees {block}",
                param="messages" if talks else "prompt",
                code="context_length_exceeded",
            )
        return ids

    def _encoded(self, request: TextRequest) -> list[int]:
        served = self.served
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
        top_k=request.top_k or None,
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


def _taken(tokens: list[ScoredToken]) -> list[ScoredToken]:
    taken = tokens[:]
    tokens.clear()
    return taken


def _end(row: int, completion: Completion, tokens: list[ScoredToken]) -> Piece:
    reason = "length" if completion.stop_reason == LENGTH else "stop"
    return Piece(row, "", tokens, reason, len(completion.tokens))
