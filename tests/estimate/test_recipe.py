"""The settings that a plan gives."""

from __future__ import annotations

import pytest

from cpulm.estimate.recipe import recipe
from cpulm.settings.resolve_settings import resolve


@pytest.mark.parametrize("tokens", [5e4, 2e5, 1e6, 1e7, 1e9])
def test_validations_take_a_small_part_of_a_run_of_any_length(tokens: float) -> None:
    """A quarter is computed twice, each token at the cost of training in int8; a very short run has four."""
    settings = resolve(assignments=["model.n_layer=2", "model.n_embd=128", "model.n_head=2"])
    planned = recipe(settings, 1e9, tokens, 0.5)
    a_step = planned["train.micro_batch_size"] * planned["model.block_size"]
    number = tokens / a_step / planned["eval.every"]
    each = planned["eval.batches"] * a_step * 1.25
    assert number * each < 0.1 * tokens or number < 6
    assert number >= 3


@pytest.mark.parametrize(("passes", "rate"), [(0.5, 0.0078), (2.0, 0.0023), (7.0, 0.00078)])
def test_the_embedding_learns_slowly_where_a_text_is_repeated(passes: float, rate: float) -> None:
    settings = resolve(assignments=["model.n_layer=6", "model.n_embd=384", "model.n_head=6"])
    tokens = passes * 330e3
    assert recipe(settings, 1e6, tokens, passes)["train.lr"] == pytest.approx(rate, rel=0.02)


def test_tokens_are_split_where_a_small_text_is_repeated_and_they_can_be() -> None:
    for assignments, expected in (
        ([], 0.1),
        (["data.tokenizer=char", "data.vocab_size=null"], 0.0),
        (["data.tokenizer=my/tokenizer.json"], 0.1),
        (["data.tokenizer=my/words.txt"], 0.0),
        (["train.records=true"], 0.0),
    ):
        settings = resolve(assignments=assignments)
        assert recipe(settings, 1e6, 4e6, 7.0)["train.bpe_dropout"] == expected
        assert recipe(settings, 1e9, 4e6, 0.5)["train.bpe_dropout"] == 0.0
