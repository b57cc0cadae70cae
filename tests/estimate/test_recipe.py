"""The settings that a plan gives."""

from __future__ import annotations

import pytest

from cpulm.estimate.recipe import recipe
from cpulm.settings import ModelSettings


@pytest.mark.parametrize("tokens", [5e4, 2e5, 1e6, 1e7, 1e9])
def test_validations_take_a_small_part_of_a_run_of_any_length(tokens: float) -> None:
    """Each is of two models, at a third of the cost of training; a very short run has four of them."""
    planned = recipe(ModelSettings(n_layer=2, n_head=2, n_embd=128, block_size=128), 1e9, tokens, 0.5)
    a_step = planned["train.micro_batch_size"] * planned["model.block_size"]
    number = tokens / a_step / planned["eval.every"]
    each = planned["eval.batches"] * a_step * 2 / 3
    assert number * each < 0.1 * tokens or number < 6
    assert number >= 3
