"""The duration of a run from its settings alone, for decisions that must not depend on measurements."""

from __future__ import annotations

import pytest

from cpulm.estimate.requirements import nominal_seconds
from cpulm.model.counts import flops_per_token
from cpulm.settings_resolver import resolve


def test_a_horizon_in_updates_counts_operations() -> None:
    settings = resolve(preset="tiny")
    flops = flops_per_token(settings.model, 2048) * settings.tokens_per_step
    assert nominal_seconds(settings, 2048, 1000, "cpu") == pytest.approx(1000 * flops / 1e11)
    assert nominal_seconds(settings, 2048, 1000, "cuda") == pytest.approx(1000 * flops / 1e13)
    assert nominal_seconds(settings, 2048, None, "cpu") is None


def test_a_horizon_in_time_is_taken_as_it_is() -> None:
    settings = resolve(preset="tiny", assignments=["train.max_time=90m"])
    assert nominal_seconds(settings, 2048, None, "cpu") == 5400.0
