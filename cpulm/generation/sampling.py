"""Chooses the next token from logits.

The functions are pure and take logits [B, V], one row per text. They are applied in the order of
transformers: repetition penalty, temperature, top-k, top-p, min-p, then one draw from the remaining tokens.
All of it runs on the CPU: a row of logits is small, and a seed then gives the same text on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cpulm.errors import DataError, SettingsError

_NUCLEUS_GUESS = 512
_LEAST_TEMPERATURE = 1e-30


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults are the model's own probabilities.

    At ``temperature`` 0 the likeliest token is taken, and only ``repetition_penalty`` has an effect.
    ``top_k`` 0 is all tokens, as None.

    Raises:
        SettingsError: if a value is outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise SettingsError(
                f"temperature = {self.temperature:g} must be a finite number, 0 or more",
                "0 always takes the likeliest token, 1 keeps the model's probabilities; 0.8 is usual",
            )
        if self.top_k is not None and self.top_k < 0:
            raise SettingsError(f"top_k = {self.top_k} must be 0 or more", "0 is all tokens; 50 is usual")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p = {self.top_p:g} must be above 0 and at most 1", "0.9 is usual")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise SettingsError(f"min_p = {self.min_p:g} must be between 0 and 1", "0.05 is usual")
        if not 0 < self.repetition_penalty < math.inf:
            raise SettingsError(
                f"repetition_penalty = {self.repetition_penalty:g} must be a finite number above 0",
                "1 changes nothing; 1.1 is usual",
            )


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of the tokens in ``seen`` (bool [B, V]) by ``penalty``, multiply negative ones.

    Source: Keskar et al. 2019, CTRL (arXiv:1909.05858), section 4.1, in the form that transformers uses
    for negative logits.
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalized, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the ``k`` largest logits of a row, and those equal to the last of them, to -inf.

    Source: Fan et al. 2018 (arXiv:1805.04833).
    """
    if k >= logits.size(-1):
        return logits
    lowest = logits.topk(k).values[:, -1:]
    return logits.masked_fill(logits < lowest, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Set logits outside the nucleus (the fewest likeliest tokens with a total of at least ``p``) to -inf.

    Source: Holtzman et al. 2020 (arXiv:1904.09751).
    """
    if p >= 1:
        return logits
    count = logits.size(-1)
    probabilities = logits.softmax(-1)
    # Sorting 50,000 numbers takes longer than a small model's forward pass, and the nucleus is
    # nearly always within the first few hundred.
    if count > 4 * _NUCLEUS_GUESS:
        top = probabilities.topk(_NUCLEUS_GUESS)
        if bool((top.values.sum(-1) >= p).all()):
            return _keep_nucleus(logits, top.values, top.indices, p)
    ordered = probabilities.sort(descending=True, stable=True)
    return _keep_nucleus(logits, ordered.values, ordered.indices, p)


def _keep_nucleus(logits: Tensor, probabilities: Tensor, ids: Tensor, p: float) -> Tensor:
    """Keep those ``ids``, sorted likeliest first, that less than ``p`` precedes. All [B, n], n <= V."""
    before = probabilities.cumsum(-1) - probabilities
    kept = torch.full_like(logits, -math.inf)
    values = logits.gather(-1, ids).masked_fill_(before >= p, -math.inf)
    return kept.scatter_(-1, ids, values)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Set logits of tokens less likely than ``p`` times the likeliest one to -inf.

    Source: Nguyen et al. 2024 (arXiv:2407.01082).
    """
    if p == 0:
        return logits
    lowest = logits.amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < lowest, -math.inf)


def shape(logits: Tensor, options: Sampling, seen: Tensor | None = None) -> Tensor:
    """Apply all ``options`` in their order, for a temperature above 0.

    Args:
        logits: [B, V].
        options: what to apply.
        seen: bool [B, V], the tokens of each text; needed if a repetition penalty is set.

    Returns:
        Logits [B, V], -inf for excluded tokens.
    """
    if options.repetition_penalty != 1:
        assert seen is not None
        logits = penalize_repetition(logits, seen, options.repetition_penalty)
    if options.temperature != 1:
        # Shifted first, so a tiny temperature cannot overflow; below the smallest temperature all are
        # greedy, and a denormal would be flushed to zero.
        logits = (logits - logits.amax(-1, keepdim=True)) / max(options.temperature, _LEAST_TEMPERATURE)
    if options.top_k:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p is not None:
        logits = keep_top_p(logits, options.top_p)
    if options.min_p is not None:
        logits = keep_min_p(logits, options.min_p)
    return logits


def sample(logits: Tensor, options: Sampling, draws: Sequence[float], seen: Tensor | None = None) -> Tensor:
    """Choose one token per row.

    Args:
        logits: [B, V], float, on the CPU.
        options: how to choose.
        draws: B uniform random numbers from [0, 1), one per row: the same draw takes the same token,
            independent of the other rows. Not used at temperature 0.
        seen: as for :func:`shape`.

    Returns:
        Token ids, int64 [B].

    Raises:
        DataError: if the logits are not finite.
    """
    logits = logits.float()
    if options.temperature == 0:
        if options.repetition_penalty != 1:
            assert seen is not None
            logits = penalize_repetition(logits, seen, options.repetition_penalty)
        top = logits.max(-1)
        _require_finite(top.values)
        return top.indices
    probabilities = shape(logits, options, seen).softmax(-1, dtype=torch.float64)
    # The inverse of the cumulative distribution; a token of probability 0 has no interval in it.
    heights = probabilities.cumsum(-1)
    total = heights[:, -1:]
    _require_finite(total)
    wanted = total * torch.tensor(draws, dtype=torch.float64)[:, None]
    return torch.searchsorted(heights, wanted, right=True)[:, 0]


def _require_finite(values: Tensor) -> None:
    if not all(map(math.isfinite, values.flatten().tolist())):
        raise DataError(
            "the model's outputs are not finite",
            "the training diverged: use an earlier checkpoint of the run",
        )
