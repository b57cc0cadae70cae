"""Finds the tokens that a model never saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cpulm.inspection.model_report import Ints, VocabularyUse
from cpulm.inspection.tokens import TokenTexts
from cpulm.model.transformer import INIT_STD, Transformer

RARE = 10
"""Tokens that occur at most this often in the training data have hardly been learned."""
_EXAMPLES = 60
_CHUNK = 1 << 22
_DEVIATIONS = 4.0


def count_tokens(tokens: npt.NDArray[Any], vocab_size: int, advance: Callable[[int], None]) -> Ints:
    """Count each token in ``tokens``, int64 [vocab_size], in bounded memory.

    Args:
        tokens: 1-D, usually a memory map.
        advance: called with the number of tokens counted.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    flat = np.asarray(tokens)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        counts += np.bincount(part, minlength=vocab_size)
        advance(len(part))
    return counts


def vocabulary_use(model: Transformer, counts: Ints | None, texts: TokenTexts) -> VocabularyUse:
    """Find tokens the model never saw: by ``counts`` of its training data, or else by its embedding."""
    if counts is not None:
        return VocabularyUse(
            vocab_size=model.vocab_size,
            basis="training data",
            note="tokens that do not occur in the training data",
            unused=int((counts == 0).sum()),
            rare=int(((counts > 0) & (counts <= RARE)).sum()),
            examples=texts.texts(np.flatnonzero(counts == 0)[:_EXAMPLES]),
        )
    if model.lm_head is None:
        return VocabularyUse(
            vocab_size=model.vocab_size,
            basis="unknown",
            note="the training data is not available, and the embedding is also the output matrix, so the "
            "rows of unused tokens are trained too",
            unused=None,
            rare=None,
            examples=(),
        )
    still = _rows_with_initial_norm(model)
    return VocabularyUse(
        vocab_size=model.vocab_size,
        basis="embedding norm",
        note="the training data is not available: the embeddings of these tokens still have about the "
        "norm of their initialization",
        unused=int(still.sum()),
        rare=None,
        examples=texts.texts(np.flatnonzero(still)[:_EXAMPLES]),
    )


@torch.inference_mode()
def _rows_with_initial_norm(model: Transformer) -> npt.NDArray[np.bool_]:
    """Which rows of the embedding have a norm that fits normal numbers of the initial standard deviation.

    The norm of n such numbers is ``std sqrt(n)``, plus or minus ``std / sqrt(2)``.
    """
    norms = torch.linalg.vector_norm(model.wte.weight.float(), dim=-1).cpu().numpy()
    expected = INIT_STD * model.settings.n_embd**0.5
    near: npt.NDArray[np.bool_] = np.abs(norms - expected) <= _DEVIATIONS * INIT_STD / 2**0.5
    return near
