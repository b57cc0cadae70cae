"""The outer step: its formula by hand, rounds of any length, and states that continue bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cpulm.model.transformer import Transformer
from cpulm.optim.build_optimizers import build_optimizers
from cpulm.optim.outer import OuterStep
from cpulm.optim.restore_state import restore_state
from cpulm.settings import ModelSettings, TrainSettings

SHAPE = ModelSettings(n_layer=1, n_head=2, n_embd=16, block_size=8)


def trained(parameter: nn.Parameter, outer: OuterStep, updates: int) -> list[float]:
    """The weight after each update, of which the inner optimizer's part is -1."""
    seen = []
    for _ in range(updates):
        with torch.no_grad():
            parameter.sub_(1.0)
        outer.step()
        seen.append(parameter.item())
    return seen


def test_the_outer_step_is_the_one_computed_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([10.0]))
    outer = OuterStep([parameter], every=2, lr=0.5, momentum=0.5)
    # Round 1: 10 -> 8, so d = 2, v = 2, and the next one starts at 10 - 0.5 * (2 + 0.5 * 2) = 8.5.
    # Round 2: 8.5 -> 6.5, so d = 2, v = 0.5 * 2 + 2 = 3, and then at 8.5 - 0.5 * (2 + 0.5 * 3) = 6.75.
    assert trained(parameter, outer, 5) == [9.0, 8.5, 7.5, 6.75, 5.75]


@pytest.mark.parametrize(("every", "lr", "momentum"), [(9, 0.1, 0.9), (2, 1.0, 0.0)])
def test_neither_a_round_beyond_the_run_nor_a_neutral_step_changes_it(
    every: int, lr: float, momentum: float
) -> None:
    parameter = nn.Parameter(torch.tensor([10.0]))
    assert trained(parameter, OuterStep([parameter], every, lr, momentum), 4) == [9.0, 8.0, 7.0, 6.0]


def test_the_outer_step_is_the_last_optimizer_and_off_by_default() -> None:
    model = model_of()
    kinds = [type(one) for one in build_optimizers(model, TrainSettings())]
    with_outer = build_optimizers(model, TrainSettings(outer_steps=3, outer_lr=0.9, outer_momentum=0.8))
    assert [type(one) for one in with_outer] == [*kinds, OuterStep]
    assert {name: with_outer[-1].defaults[name] for name in ("every", "outer_lr", "momentum")} == {
        "every": 3,
        "outer_lr": 0.9,
        "momentum": 0.8,
    }


def test_processes_take_the_plain_average_unless_a_rate_is_set() -> None:
    settings, model = TrainSettings(outer_steps=3), model_of()
    alone = build_optimizers(model, settings)[-1].defaults
    averaged = build_optimizers(model, settings, average=lambda values, *_: values)[-1].defaults
    assert (alone["outer_lr"], alone["momentum"]) == (0.7, 0.6)
    assert (averaged["outer_lr"], averaged["momentum"]) == (1.0, 0.0)


def model_of() -> Transformer:
    model = Transformer(SHAPE, 29)
    model.init_weights(0)
    return model


def run(model: Transformer, optimizers: list[torch.optim.Optimizer], steps: int) -> None:
    tokens = torch.randint(29, (4, 9), generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()).backward()
        for each in optimizers:
            each.step()
            each.zero_grad()


@pytest.mark.parametrize("stop", [0, 3, 4])
def test_a_restored_outer_step_continues_bit_for_bit(stop: int) -> None:
    train = TrainSettings(outer_steps=4)
    straight, resumed = model_of(), model_of()
    optimizers, others = build_optimizers(straight, train), build_optimizers(resumed, train)
    run(straight, optimizers, stop)
    run(resumed, others, 2)  # whatever was there before
    resumed.load_state_dict(straight.state_dict())
    for new, old in zip(others, optimizers, strict=True):
        restore_state(new, copy.deepcopy(old.state_dict()))
    run(straight, optimizers, 6)
    run(resumed, others, 6)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "change",
    [
        lambda states: states.pop(0),
        lambda states: states[0].pop("velocity"),
        lambda states: states[0].update(anchor=torch.zeros(1)),
        lambda states: states[0].update(velocity=states[0]["velocity"].double()),
        lambda states: states[0].update(step=torch.tensor(torch.nan)),
        lambda states: states[0].update(more=torch.zeros(1)),
    ],
    ids=["a state is missing", "half", "another shape", "another dtype", "no number", "left over"],
)
def test_a_state_that_does_not_fit_is_refused(
    change: Callable[[dict[int, Any]], object],
) -> None:
    outer = OuterStep(model_of().parameters(), every=4, lr=0.7, momentum=0.6)
    stored = copy.deepcopy(outer.state_dict())
    change(stored["state"])
    with pytest.raises(ValueError, match=r"state|anchor|velocity|step"):
        restore_state(outer, stored)
