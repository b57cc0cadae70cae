"""The moving average of the weights: its formula, and its place in the model for a moment."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cpulm.optim.weight_average import EVERY, WeightAverage


def a_model() -> nn.Module:
    return nn.Linear(3, 2)


def trained(model: nn.Module, average: WeightAverage, first: int, last: int) -> list[torch.Tensor]:
    """Let the weights wander, each update in its own way; the weights that the average takes in."""
    taken = []
    for step in range(first, last + 1):
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            model.get_parameter("weight").copy_(torch.randn(2, 3, generator=generator))
        average.update(step)
        if step % EVERY == 0:
            taken.append(model.get_parameter("weight").detach().clone())
    return taken


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1])
def test_later_weights_count_more_the_smaller_the_fraction(fraction: float) -> None:
    model = a_model()
    average = WeightAverage(model, fraction)
    taken = trained(model, average, 1, 10 * EVERY + 3)
    power = 1 / fraction
    parts = [(k**power - (k - 1) ** power) / 10**power for k in range(1, 11)]
    assert sum(parts) == pytest.approx(1)
    expected = sum(part * weight for part, weight in zip(parts, taken, strict=True))
    torch.testing.assert_close(average.state_dict()["weight"], expected)


@pytest.mark.parametrize(("round_steps", "taken"), [(1, EVERY), (3, 9), (EVERY, EVERY), (30, 30)])
def test_weights_are_taken_in_only_at_the_end_of_a_round(round_steps: int, taken: int) -> None:
    model = a_model()
    average = WeightAverage(model, 0.5, round_steps)
    before = average.state_dict()["weight"].clone()
    trained(model, average, 1, taken - 1)
    assert torch.equal(average.state_dict()["weight"], before)
    trained(model, average, taken, taken)
    torch.testing.assert_close(average.state_dict()["weight"], model.get_parameter("weight").detach())


def test_the_average_continues_bit_for_bit_from_its_state() -> None:
    model = a_model()
    average = WeightAverage(model, 0.2)
    trained(model, average, 1, 20)
    kept = {name: value.clone() for name, value in average.state_dict().items()}
    trained(model, average, 21, 40)
    other = WeightAverage(model, 0.2)
    other.load_state_dict(kept)
    trained(model, other, 21, 40)
    assert torch.equal(average.state_dict()["weight"], other.state_dict()["weight"])


def test_without_a_state_the_average_begins_with_the_weights() -> None:
    model = a_model()
    average = WeightAverage(model, 0.2)
    nn.init.constant_(model.get_parameter("weight"), 2.0)
    average.load_state_dict({})
    assert torch.equal(average.state_dict()["weight"], torch.full((2, 3), 2.0))


def test_the_model_has_the_averaged_weights_only_within_the_block() -> None:
    model = a_model()
    average = WeightAverage(model, 1.0)
    trained(model, average, 1, 3 * EVERY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    averaged = {name: value.clone() for name, value in average.state_dict().items()}
    assert not torch.equal(before["weight"], averaged["weight"])

    def fail() -> None:
        with average.in_model():
            assert all(torch.equal(model.state_dict()[name], averaged[name]) for name in averaged)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert all(torch.equal(average.state_dict()[name], averaged[name]) for name in averaged)
