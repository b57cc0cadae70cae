"""Texts in the forms of OpenAI's answers: of completions and of conversations, whole or streamed."""

from __future__ import annotations

import math
import time
import uuid
from typing import Any, Protocol

from cpulm.serve.completion_request import ChatRequest, CompletionRequest
from cpulm.serve.written_text import Piece, ScoredToken


class Answer(Protocol):
    """The form of the answer to one request.

    Attributes:
        head: what each part of it has.
    """

    head: dict[str, Any]

    def choice(self, piece: Piece) -> dict[str, Any]:
        """A text, or its next piece if the answer is streamed."""


class CompletionAnswer:
    """See :class:`Answer`; of ``/v1/completions``."""

    def __init__(self, model: str, asked: CompletionRequest) -> None:
        self.head = _head("cmpl", "text_completion", model)
        self._asked = asked
        self._offsets: dict[int, int] = {}

    def choice(self, piece: Piece) -> dict[str, Any]:
        """See :class:`Answer`."""
        offset = self._offsets.get(piece.row, 0)
        self._offsets[piece.row] = offset + sum(len(token.text) for token in piece.tokens)
        return {
            "index": piece.row,
            "text": piece.text,
            "logprobs": None if self._asked.scores is None else _completion_scores(piece.tokens, offset),
            "finish_reason": piece.finish_reason,
        }


class ChatAnswer:
    """See :class:`Answer`; of ``/v1/chat/completions``."""

    def __init__(self, model: str, asked: ChatRequest) -> None:
        kind = "chat.completion.chunk" if asked.stream else "chat.completion"
        self.head = _head("chatcmpl", kind, model)
        self._asked = asked
        self._begun: set[int] = set()

    def choice(self, piece: Piece) -> dict[str, Any]:
        """See :class:`Answer`; the first piece of a text says whose it is."""
        message: dict[str, Any] = {} if piece.row in self._begun else {"role": "assistant"}
        self._begun.add(piece.row)
        if piece.text or message:
            message["content"] = piece.text
        scores = None
        if self._asked.scores is not None:
            scores = {"content": [_chat_score(token) for token in piece.tokens]}
        return {
            "index": piece.row,
            "delta" if self._asked.stream else "message": message,
            "logprobs": scores,
            "finish_reason": piece.finish_reason,
        }


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    number = f"{prefix}-{uuid.uuid4().hex}"
    return {"id": number, "object": kind, "created": int(time.time()), "model": model}


def _completion_scores(tokens: list[ScoredToken], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_finite(token) for token in tokens],
        "text_offset": offsets,
    }


def _chat_score(token: ScoredToken) -> dict[str, Any]:
    def entry(text: str, log: float) -> dict[str, Any]:
        return {"token": text, "logprob": log, "bytes": list(text.encode())}

    top = [entry(text, log) for text, log in _finite(token).items()]
    return {**entry(token.text, token.logprob), "top_logprobs": top}


def _finite(token: ScoredToken) -> dict[str, float]:
    """The likeliest tokens; JSON has no infinity, which a token that a rule forbids has."""
    return {text: log for text, log in token.top.items() if math.isfinite(log)}
