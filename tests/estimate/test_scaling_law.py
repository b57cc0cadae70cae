"""The worth of repeated tokens."""

from __future__ import annotations

import pytest

from cpulm.estimate.scaling_law import effective_tokens


@pytest.mark.parametrize(
    ("tokens", "unique", "worth"),
    [(1e6, 2e6, 1e6), (2e6, 2e6, 2e6), (8e6, 2e6, 7.45e6), (1e9, 2e6, 32.78e6)],
)
def test_tokens_seen_again_count_less(tokens: float, unique: float, worth: float) -> None:
    assert effective_tokens(tokens, unique) == pytest.approx(worth, rel=0.01)
