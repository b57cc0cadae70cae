"""The law that ships: what it says of sizes, bytes, passes and texts."""

from __future__ import annotations

import math

import pytest

from cpulm.estimate.learning_law import USUAL_TEXT, TextCurve, measured_law
from cpulm.estimate.recipe import (
    SHAPES,
    learning_rate,
    recipe,
    regularization,
    shape_settings,
    vocabulary,
)
from cpulm.model.counts import count
from cpulm.settings.resolve_settings import resolve


def loss(
    params: float = 4e5, trained: float = 1e6, unique: float = 1e6, text: TextCurve = USUAL_TEXT
) -> float:
    return measured_law().expected(params, trained, unique, text).loss


def test_measured_runs_are_within_the_span() -> None:
    """From benchmarks/laws.tsv: WikiText-2, 0.40 M parameters, 0.46 of 1 MB; Python, 4.81 M, 3.5 MB."""
    law = measured_law()
    for params, trained, unique, text, measured in (
        (0.402e6, 0.462e6, 1.0e6, TextCurve(2.342, 0.0422), 2.2858),
        (4.81e6, 3.52e6, 11.5e6, TextCurve(1.962, 0.1103), 1.231),
    ):
        found = law.expected(params, trained, unique, text)
        assert found.low < measured < found.high
        spread = math.hypot(law.text_spread, law.run_spread)
        assert found.high / found.low == pytest.approx(math.exp(2 * 1.2816 * spread))
        narrow = law.on_one_text().expected(params, trained, unique, text)
        assert (narrow.loss, narrow.high < found.high) == (found.loss, True)


def test_more_of_anything_is_better_and_a_repeated_byte_is_worth_less() -> None:
    assert loss(params=4e6) < loss()
    assert loss(unique=2e6, trained=2e6) < loss(trained=2e6) < loss()
    law = measured_law()
    worth = [law.worth_bytes(passes * 1e6, 1e6) / 1e6 for passes in (0.5, 1, 2, 4, 8)]
    assert worth[:2] == [0.5, 1.0]
    assert 1 < worth[2] < 2
    assert worth == sorted(worth)
    assert law.worth_bytes(1e12, 1e6) == law.worth_bytes(law.most_passes * 1e6, 1e6)


def test_a_text_unlike_those_measured_is_less_certain() -> None:
    texts = (USUAL_TEXT, TextCurve(0.9, USUAL_TEXT.slope))
    usual, strange = (measured_law().expected(4e5, 1e6, 1e6, text) for text in texts)
    assert strange.loss < usual.loss
    assert strange.high / strange.low > 1.5 * usual.high / usual.low


def test_what_learns_its_text_by_heart_is_regularized() -> None:
    """By the size of the model, of the text, and by the passes: the borders of benchmarks/EXPERIMENTS.md."""
    for params, text_tokens, passes, expected in (
        (402e3, 346e3, 2.0, (0.0, 0.1, 0.0, 1.0)),
        (402e3, 346e3, 6.0, (0.0, 0.1, 0.0, 0.3)),
        (402e3, 346e3, 17.0, (0.0, 0.5, 0.0, 0.1)),
        (1.77e6, 346e3, 8.0, (0.0, 0.5, 0.0, 0.1)),
        (402e3, 40e3, 10.0, (0.0, 0.5, 0.1, 0.1)),
        (4.82e6, 346e3, 12.0, (0.0, 0.5, 0.2, 0.1)),
        (4.82e6, 346e3, 17.0, (0.0, 0.5, 0.3, 0.1)),
        (4.82e6, 346e3, 30.0, (0.1, 0.5, 0.3, 0.1)),
    ):
        found = regularization(passes, params, text_tokens, splits=True)
        assert found == expected
        assert regularization(passes, params, text_tokens, splits=False) == found._replace(bpe_dropout=0.0)


def test_a_recipe_is_settings_that_follow_size_text_and_passes() -> None:
    for shape in SHAPES:
        settings = resolve(planned=shape_settings(shape))
        for tokens, passes in ((2e5, 0.1), (2e6, 3.0), (5e7, 15.0)):
            planned = resolve(planned=shape_settings(shape) | recipe(settings, 1e6, tokens, passes))
            params = count(planned.model, 0).non_embedding
            suitable = regularization(passes, params, tokens / passes, splits=True)
            train = planned.train
            assert (planned.model.dropout, train.weight_decay, train.bpe_dropout) == suitable[:3]
            assert train.lr == learning_rate(planned.model.n_embd, suitable)
            assert planned.tokens_per_step <= 8192
            assert planned.eval.every * 8 < tokens / planned.tokens_per_step or tokens < 1e6
    assert vocabulary(128, 1e4) < vocabulary(128, 1e6) <= vocabulary(512, 1e8)
    wide = resolve(assignments=["model.n_embd=512", "model.n_head=8"])
    assert recipe(wide, 1e6, 1e6, 1.0)["train.lr"] < recipe(resolve(), 1e6, 1e6, 1.0)["train.lr"]
