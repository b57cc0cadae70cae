"""The surprise of every token is the model's own loss; statistics of hidden units."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import BLOCK, SHAPES, a_model
from torch import Tensor

from cpulm.data.loader import val_batch_count, val_batches
from cpulm.data.tokenizer import byte_tokenizer, char_tokenizer
from cpulm.evaluation.validation_loss import evaluate
from cpulm.inspection import text_pass
from cpulm.inspection.loss_breakdown import by_kind, by_position
from cpulm.inspection.model_report import MOST_POSITIONS
from cpulm.inspection.text_pass import TextStatistics, read, window_starts
from cpulm.inspection.tokens import KINDS, TokenTexts
from cpulm.model.transformer import Transformer

TOKENS = np.random.default_rng(0).integers(0, 40, 75).astype(np.uint16)


def everything(model: Transformer, tokens: Any = TOKENS) -> TextStatistics:
    return read(model, tokens, window_starts(len(tokens), model.settings.block_size, 100), lambda _: None)


@pytest.mark.parametrize(
    ("tokens", "most", "starts"),
    [
        (2, 9, [0]),
        (17, 9, [0]),
        (18, 9, [0, 16]),
        (65, 9, [0, 16, 32, 48]),
        (65, 2, [0, 32]),
        (66, 2, [0, 32]),
    ],
)
def test_windows_lie_side_by_side_or_are_spread_evenly(tokens: int, most: int, starts: list[int]) -> None:
    assert window_starts(tokens, 16, most).tolist() == starts


@pytest.mark.parametrize("kind", SHAPES)
def test_surprise_is_the_log_probability_that_the_logits_give(kind: str) -> None:
    model = a_model(**SHAPES[kind])
    found = everything(model)
    logits = model(torch.from_numpy(TOKENS[: BLOCK + 1].astype(np.int64))[None, :-1])[0]
    wanted = torch.from_numpy(TOKENS[1 : BLOCK + 1].astype(np.int64))
    expected = -logits.log_softmax(-1)[torch.arange(BLOCK), wanted]
    np.testing.assert_allclose(found.surprise[0], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_the_mean_is_the_loss_of_a_validation_over_the_same_text() -> None:
    model = a_model()
    found = everything(model)
    whole = evaluate(
        model,
        val_batches(TOKENS, BLOCK, 2),
        val_batch_count(TOKENS, BLOCK, 2),
        emit=lambda _: None,
        should_stop=lambda: False,
    )
    assert whole is not None
    assert found.tokens == whole.tokens == len(TOKENS) - 1
    assert found.loss == pytest.approx(whole.loss, rel=1e-5)


def test_a_few_rows_of_logits_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model()
    whole = everything(model).surprise
    monkeypatch.setattr(text_pass, "LOGITS_IN_CHUNK", 100)
    monkeypatch.setattr(text_pass, "_TOKENS_AT_ONCE", BLOCK)
    np.testing.assert_allclose(everything(model).surprise, whole, rtol=1e-5, atol=1e-6)


def test_progress_counts_every_window() -> None:
    told: list[int] = []
    read(a_model(), TOKENS, window_starts(len(TOKENS), BLOCK, 100), told.append)
    assert sum(told) == 5


def with_units(activation: str) -> Transformer:
    """A model whose first layer has a unit 3 that is never active, and a unit 5 that is always the same."""
    model = a_model(n_layer=2, mlp=activation, bias=True)
    mlp: Any = model.blocks[0].get_submodule("mlp")
    projection = mlp.gate_up if activation == "swiglu" else mlp.up
    inner = model.settings.inner_width
    for unit, bias in ((3, -30.0), (5, 2.0)):
        for row in (unit, inner + unit) if activation == "swiglu" else (unit,):
            projection.weight[row] = 0.0
            projection.bias[row] = bias
    if activation == "swiglu":
        projection.bias[inner + 3] = 0.0
    return model


@pytest.mark.parametrize("activation", ["swiglu", "gelu", "relu"])
def test_dead_and_constant_units_are_counted_and_named(activation: str) -> None:
    model = with_units(activation)
    first, second = everything(model).units
    assert (first.layer, first.units) == (0, model.settings.inner_width)
    assert (first.never_active, first.constant, first.examples) == (1, 1, (3, 5))
    assert (second.never_active, second.constant, second.examples) == (0, 0, ())
    assert 0.3 < first.active_share < 1


def test_half_of_relu_units_are_active_when_half_of_their_inputs_are_positive() -> None:
    model = a_model(n_layer=1, mlp="relu")
    activations: list[Tensor] = []
    down = model.blocks[0].get_submodule("mlp.down")
    handle = down.register_forward_pre_hook(lambda _, inputs: activations.append(inputs[0].flatten(0, -2)))
    (layer,) = everything(model).units
    handle.remove()
    seen = torch.cat(activations)
    threshold = 0.1 * seen.square().mean(-1, keepdim=True).sqrt()
    assert layer.active_share == pytest.approx(float((seen > threshold).double().mean()), abs=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = a_model()
    everything(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def a_reading(windows: list[list[int]], surprise: list[list[float]]) -> TextStatistics:
    rows = np.array(windows, dtype=np.int64)
    return TextStatistics(np.zeros(len(rows), dtype=np.int64), rows, np.array(surprise, dtype=np.float32), ())


def test_loss_by_position_is_the_mean_over_the_windows_that_reach_there() -> None:
    found = by_position(a_reading([[1, 1, 1, 1], [1, 1, 1, -1]], [[1.0, 2.0, 3.0], [3.0, 6.0, float("nan")]]))
    assert found.first.tolist() == found.last.tolist() == [0, 1, 2]
    assert found.loss.tolist() == [2.0, 4.0, 3.0]
    np.testing.assert_allclose(found.standard_error, [1.0, 2.0, np.nan])


def test_long_contexts_are_grouped_and_cover_every_position_once() -> None:
    length = MOST_POSITIONS + 100
    found = by_position(a_reading([[1] * (length + 1)], [list(map(float, range(length)))]))
    assert len(found.loss) <= MOST_POSITIONS
    assert (found.first[0], found.last[-1]) == (0, length - 1)
    assert all(b == a + 1 for a, b in itertools.pairwise(np.stack([found.first, found.last], 1).flatten()))
    np.testing.assert_allclose(found.loss, (found.first + found.last) / 2)


def test_loss_by_kind_shares_out_every_token_and_the_whole_loss() -> None:
    tokenizer = char_tokenizer("ab 1\n")
    ids = dict(zip("\n 1ab", range(5), strict=True))
    text = [[ids[char] for char in "a b1\nab"]]
    found = by_kind(a_reading(text, [[1.0, 4.0, 1.0, 1.0, 2.0, 1.0]]), TokenTexts(tokenizer))
    told = {each.kind: (each.tokens, each.loss, each.loss_share, each.examples) for each in found}
    assert told == {
        "word start": (2, 3.0, 0.6, ("b", "a")),
        "whitespace": (1, 1.0, 0.1, (" ",)),
        "digits": (1, 1.0, 0.1, ("1",)),
        "newline": (1, 1.0, 0.1, ("\n",)),
        "inside a word": (1, 1.0, 0.1, ("b",)),
    }
    assert found[0].kind == "word start"
    assert found[0].standard_error == pytest.approx(np.std([4.0, 2.0], ddof=1) / 2**0.5)
    assert sum(each.share for each in found) == pytest.approx(1)
    assert {each.kind for each in found} <= set(KINDS)


def test_the_context_determines_the_kind_of_a_windows_first_target() -> None:
    tokenizer = byte_tokenizer()
    windows = [[ord("x"), ord("a")], [ord("."), ord("b")]]
    found = by_kind(a_reading(windows, [[1.0], [1.0]]), TokenTexts(tokenizer))
    assert {each.kind: each.examples for each in found} == {"inside a word": ("a",), "word start": ("b",)}


def test_cross_entropy_is_what_surprises_adds_up_to() -> None:
    model = a_model()
    windows = torch.from_numpy(TOKENS[: 2 * BLOCK + 2].astype(np.int64)).view(2, -1)
    logits = model(windows[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    torch.testing.assert_close(text_pass.surprises(model, windows).mean(), expected)
