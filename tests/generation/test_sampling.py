"""From logits to the next token: each rule against its definition, all together against transformers."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpulm.errors import DataError, SettingsError
from cpulm.generation.sampling import (
    Sampling,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    sample,
    shape,
)


def random_logits(rows: int = 4, vocab_size: int = 50, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, vocab_size, generator=generator)


def kept(logits: Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


# Each rule against its definition


def test_top_k_keeps_the_k_largest() -> None:
    logits = torch.tensor([[0.1, 5.0, -1.0, 3.0], [4.0, 1.0, 2.0, 3.0]])
    assert kept(keep_top_k(logits, 2)) == [[1, 3], [0, 3]]
    assert kept(keep_top_k(logits, 1)) == [[1], [0]]


def test_top_k_0_is_all_tokens() -> None:
    logits = random_logits()
    assert torch.equal(shape(logits, Sampling(top_k=0)), logits)


def test_top_k_of_the_whole_vocabulary_or_more_changes_nothing() -> None:
    logits = random_logits()
    assert torch.equal(keep_top_k(logits, 50), logits)
    assert torch.equal(keep_top_k(logits, 1000), logits)


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.3, [2]), (0.5, [2]), (0.51, [0, 2]), (0.8, [0, 2]), (0.81, [0, 2, 3]), (0.96, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_p(p: float, expected: list[int]) -> None:
    # 0.5 and 0.25 are exact in binary, so the borders are exact
    logits = torch.tensor([[0.3, 0.05, 0.5, 0.15]], dtype=torch.float64).log()
    assert kept(keep_top_p(logits, p)) == [expected]


def test_top_p_never_leaves_a_row_empty() -> None:
    assert [len(row) for row in kept(keep_top_p(random_logits(), 1e-9))] == [1, 1, 1, 1]


@pytest.mark.parametrize("p", [0.2, 0.9, 0.999])
def test_top_p_of_a_large_vocabulary_is_the_same_with_and_without_the_short_way(p: float) -> None:
    logits = random_logits(rows=3, vocab_size=5000)
    for row in logits:  # by its definition, in a plain loop
        probabilities = row.double().softmax(-1).tolist()
        mass, expected = 0.0, set()
        for token in sorted(range(5000), key=lambda token: -probabilities[token]):
            if mass >= p:
                break
            expected.add(token)
            mass += probabilities[token]
        found = set(kept(keep_top_p(row[None], p))[0])
        assert len(found ^ expected) <= (1 if p > 0.99 else 0)  # fp32 sums of 5,000 numbers


@pytest.mark.parametrize(
    ("p", "expected"), [(0.01, [0, 1, 2, 3]), (0.2, [0, 2, 3]), (0.5, [0, 2]), (1.0, [2])]
)
def test_min_p_is_relative_to_the_likeliest(p: float, expected: list[int]) -> None:
    logits = torch.tensor([[0.3, 0.05, 0.5, 0.15]]).log() + 7
    assert kept(keep_min_p(logits, p)) == [expected]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_the_rules_do_not_change_their_input() -> None:
    logits, seen = random_logits(), torch.ones(4, 50, dtype=torch.bool)
    before = logits.clone()
    shape(logits, Sampling(0.7, 5, 0.8, 0.1, 1.3), seen)
    assert torch.equal(logits, before)


# The whole against transformers


@pytest.mark.parametrize(
    "options",
    [
        Sampling(temperature=0.7),
        Sampling(top_k=7),
        Sampling(top_p=0.83),
        Sampling(min_p=0.07),
        Sampling(repetition_penalty=1.4),
        Sampling(temperature=0.6, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
        Sampling(temperature=1.7, top_k=30, top_p=0.6, min_p=0.1, repetition_penalty=0.8),
    ],
)
def test_same_distribution_as_the_processors_of_transformers(options: Sampling) -> None:
    import transformers as hf

    text = torch.tensor([[1, 2, 3, 3], [4, 5, 6, 7], [0, 0, 0, 0], [49, 48, 1, 2]])
    processors = hf.LogitsProcessorList([hf.RepetitionPenaltyLogitsProcessor(options.repetition_penalty)])
    processors.append(hf.TemperatureLogitsWarper(options.temperature))
    if options.top_k is not None:
        processors.append(hf.TopKLogitsWarper(options.top_k))
    if options.top_p is not None:
        processors.append(hf.TopPLogitsWarper(options.top_p))
    if options.min_p is not None:
        processors.append(hf.MinPLogitsWarper(options.min_p))
    logits = random_logits()
    seen = torch.zeros(4, 50, dtype=torch.bool).scatter_(1, text, True)
    expected = processors(text, logits.clone()).softmax(-1)
    torch.testing.assert_close(shape(logits, options, seen).softmax(-1), expected)


# The draw


def test_tokens_come_as_often_as_their_probability_says() -> None:
    probabilities = torch.tensor([0.5, 0.2, 0.0, 0.25, 0.05])
    source = random.Random(0)
    count = 20_000
    draws = [source.random() for _ in range(count)]
    ids = sample(probabilities.log().expand(count, 5), Sampling(), draws)
    frequencies = torch.bincount(ids, minlength=5) / count
    # Four standard deviations of a frequency of one half
    assert (frequencies - probabilities).abs().max() < 4 * math.sqrt(0.25 / count)
    assert frequencies[2] == 0


def test_temperature_sharpens_and_flattens() -> None:
    logits = torch.tensor([[math.log(0.8), math.log(0.2)]])
    assert shape(logits, Sampling(temperature=0.5)).softmax(-1)[0, 0].item() == pytest.approx(0.64 / 0.68)
    assert shape(logits, Sampling(temperature=2.0)).softmax(-1)[0, 0].item() == pytest.approx(2 / 3)


def test_temperature_0_takes_the_likeliest_whatever_the_draw() -> None:
    logits = random_logits()
    assert (
        sample(logits, Sampling(temperature=0), [0.0, 0.3, 0.9, 0.999]).tolist() == logits.argmax(-1).tolist()
    )


def test_temperature_0_heeds_the_repetition_penalty() -> None:
    logits, seen = torch.tensor([[3.0, 2.0]]), torch.tensor([[True, False]])
    assert sample(logits, Sampling(temperature=0, repetition_penalty=2.0), [0.5], seen).tolist() == [1]


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    logits = 1000 * random_logits()
    assert sample(logits, Sampling(temperature=1e-38), [0.5] * 4).tolist() == logits.argmax(-1).tolist()


def test_a_row_does_not_depend_on_the_others() -> None:
    logits, draws, options = random_logits(), [0.1, 0.5, 0.7, 0.99], Sampling(0.9, 20, 0.9, 0.01)
    together = sample(logits, options, draws).tolist()
    assert together == [int(sample(logits[row : row + 1], options, [draws[row]])) for row in range(4)]


@settings(max_examples=150, deadline=None)
@given(
    row=st.lists(st.floats(-60, 60, width=32) | st.just(-math.inf), min_size=1, max_size=12),
    draw=st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 1 - 2**-53]),
)
def test_never_a_token_of_probability_zero(row: list[float], draw: float) -> None:
    logits = torch.tensor([[*row, 0.0]])
    token = int(sample(logits, Sampling(), [draw]))
    assert 0 <= token < logits.size(1)
    assert logits.double().softmax(-1)[0, token] > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_of_a_diverged_model_are_refused(temperature: float, bad: float) -> None:
    with pytest.raises(DataError, match="not finite"):
        sample(torch.tensor([[0.0, bad, 1.0]]), Sampling(temperature), [0.5])


# Ranges


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": -5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(SettingsError, match=f"^{name} = {value:g} ") as caught:
        Sampling(**wrong)  # type: ignore[arg-type]
    assert ("a finite number" in caught.value.message) or value != math.inf
    assert caught.value.hint
