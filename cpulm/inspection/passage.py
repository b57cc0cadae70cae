"""The model's predictions at every token of a passage, and after a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cpulm.inspection.model_report import Alternative, NextToken, Passage
from cpulm.inspection.tokens import KINDS, TokenTexts
from cpulm.model.counts import LOGITS_IN_CHUNK
from cpulm.model.transformer import Transformer

MOST_TOKENS = 256
"""Tokens of a passage: a page of text."""
_ALTERNATIVES = 5
_ALTERNATIVES_OF_ONE = 20


@torch.inference_mode()
def passage(model: Transformer, tokens: Sequence[int], texts: TokenTexts, *, shown_from: int) -> Passage:
    """Return the model's prediction at every one of ``tokens``.

    Args:
        tokens: at least two, at most ``block_size + 1``; the first one is not predicted.
        shown_from: 1 if the first token is context only, 0 if it is part of the passage.
    """
    rows, wanted = _hidden(model, tokens[:-1]), torch.tensor(tokens[1:], device=model.wte.weight.device)
    at_once = max(1, LOGITS_IN_CHUNK // model.vocab_size)
    surprise, entropy, rank = [math.nan], [math.nan], [0]
    alternatives: list[tuple[Alternative, ...]] = [()]
    for some, targets in zip(rows.split(at_once), wanted.split(at_once), strict=True):
        log_probs = _log_probs(model, some)
        chosen = log_probs.gather(1, targets[:, None])
        surprise += (-chosen.flatten()).tolist()
        entropy += _entropy(log_probs).tolist()
        rank += ((log_probs > chosen).sum(1) + 1).tolist()
        alternatives += [_likeliest(row, texts, _ALTERNATIVES) for row in log_probs]
    return Passage(
        tokens=texts.texts(tokens[shown_from:]),
        kinds=tuple(KINDS[kind] for kind in texts.kinds(np.asarray(tokens))[shown_from:]),
        surprise=np.array(surprise[shown_from:]),
        entropy=np.array(entropy[shown_from:]),
        rank=np.array(rank[shown_from:], dtype=np.int64),
        alternatives=tuple(alternatives[shown_from:]),
    )


@torch.inference_mode()
def next_token(model: Transformer, prompt_ids: Sequence[int], prompt: str, texts: TokenTexts) -> NextToken:
    """Return the prediction after ``prompt_ids``, of which the model sees the last ``block_size``."""
    seen = prompt_ids[-model.settings.block_size :]
    log_probs = _log_probs(model, _hidden(model, seen)[-1:])
    return NextToken(
        prompt=prompt,
        entropy=float(_entropy(log_probs)),
        alternatives=_likeliest(log_probs[0], texts, _ALTERNATIVES_OF_ONE),
    )


def _hidden(model: Transformer, tokens: Sequence[int]) -> Tensor:
    """The last hidden states [T, n_embd] of ``tokens``."""
    idx = torch.tensor([list(tokens)], device=model.wte.weight.device)
    return model.hidden(idx)[0]


def _log_probs(model: Transformer, hidden: Tensor) -> Tensor:
    """Log probabilities [n, V] of the token after each of ``hidden`` [n, n_embd], float32."""
    return F.linear(hidden, model.head_weight).float().log_softmax(-1)


def _entropy(log_probs: Tensor) -> Tensor:
    """Entropy of each row of [n, V], in nats."""
    return -(log_probs.exp() * log_probs).sum(-1)


def _likeliest(log_probs: Tensor, texts: TokenTexts, count: int) -> tuple[Alternative, ...]:
    top = log_probs.topk(min(count, log_probs.numel()))
    pairs = zip(top.indices.tolist(), top.values.exp().tolist(), strict=True)
    return tuple(Alternative(texts.text(token), probability) for token, probability in pairs)
