"""Breaks the loss down by the amount of context before a token and by the kind of token."""

from __future__ import annotations

import math
import warnings
from collections import Counter

import numpy as np

from cpulm.inspection.model_report import MOST_POSITIONS, KindLoss, PositionLoss
from cpulm.inspection.text_pass import TextStatistics
from cpulm.inspection.tokens import KINDS, TokenTexts

_EXAMPLES = 8


def by_position(reading: TextStatistics) -> PositionLoss:
    """The loss by position in the window; positions without any token are left out."""
    length = int((reading.targets >= 0).sum(1).max())
    width = -(-length // MOST_POSITIONS)
    first = np.arange(0, length, width, dtype=np.int64)
    last = np.minimum(first + width, length) - 1
    with warnings.catch_warnings():
        # A window that ends early has no loss after its end.
        warnings.simplefilter("ignore", RuntimeWarning)
        per_window = np.stack(
            [
                np.nanmean(reading.surprise[:, a : b + 1], axis=1, dtype=np.float64)
                for a, b in zip(first, last, strict=True)
            ],
            axis=1,
        )
        count = np.isfinite(per_window).sum(0)
        loss = np.nanmean(per_window, axis=0)
        error = np.nanstd(per_window, axis=0, ddof=1) / np.sqrt(count)
    return PositionLoss(first, last, loss, error)


def by_kind(reading: TextStatistics, texts: TokenTexts) -> tuple[KindLoss, ...]:
    """The loss by the kind of the predicted token, sorted by the kinds' part of the loss, largest first."""
    there = reading.targets >= 0
    targets, surprise = reading.targets[there], reading.surprise[there].astype(np.float64)
    in_text = reading.windows >= 0
    kind_of = np.full(reading.windows.shape, -1)
    # With the context token of each window, which determines the first target's kind.
    kind_of[in_text] = texts.kinds(reading.windows[in_text])
    kinds = kind_of[:, 1:][there]
    total = float(surprise.sum())
    losses = []
    for number, name in enumerate(KINDS):
        chosen = kinds == number
        count = int(chosen.sum())
        if not count:
            continue
        some = surprise[chosen]
        frequent = Counter(targets[chosen].tolist()).most_common(_EXAMPLES)
        losses.append(
            KindLoss(
                kind=name,
                tokens=count,
                loss=float(some.mean()),
                standard_error=float(some.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan,
                share=count / len(targets),
                loss_share=float(some.sum()) / total if total else 0.0,
                examples=texts.texts([token for token, _ in frequent]),
            )
        )
    return tuple(sorted(losses, key=lambda each: -each.loss_share))
