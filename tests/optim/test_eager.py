"""The optimizer that imports no compiler equals torch's own, in every update and in its state."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cpulm.optim.eager import AdamW, undecorated

GROUPS: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.95), "fused": True}


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((16, 48), (48,))]


def built(kind: type[torch.optim.AdamW], model: list[nn.Parameter]) -> torch.optim.AdamW:
    decayed, rest = model
    return kind(
        [{"params": [decayed], "weight_decay": 0.1}, {"params": [rest], "weight_decay": 0.0}], **GROUPS
    )


def take_steps(optimizer: torch.optim.Optimizer, model: list[nn.Parameter], first: int, last: int) -> None:
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number + 1)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (number + 1)
        for parameter in model:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert all(parameter.grad is None for parameter in model)


@pytest.mark.parametrize(("before", "after"), [(torch.optim.AdamW, AdamW), (AdamW, torch.optim.AdamW)])
def test_it_continues_from_torchs_state_and_torch_from_its_state(
    before: type[torch.optim.AdamW], after: type[torch.optim.AdamW]
) -> None:
    model, other = parameters(), parameters()
    one, two = built(before, model), built(after, other)
    take_steps(one, model, 0, 3)
    with torch.no_grad():
        for mine, theirs in zip(other, model, strict=True):
            mine.copy_(theirs)
    two.load_state_dict(deepcopy(one.state_dict()))
    take_steps(one, model, 3, 6)
    take_steps(two, other, 3, 6)
    for mine, theirs in zip(other, model, strict=True):
        assert torch.equal(mine, theirs)
    assert_equal_states(one.state_dict(), two.state_dict())


def assert_equal_states(one: Any, two: Any) -> None:
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal_states(one[key], two[key])
    elif isinstance(one, list):
        for a, b in zip(one, two, strict=True):
            assert_equal_states(a, b)
    elif isinstance(one, Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


def test_an_update_leaves_no_graph_and_gradients_as_they_are_switched() -> None:
    model = parameters()
    optimizer = built(AdamW, model)
    take_steps(optimizer, model, 0, 1)
    assert torch.is_grad_enabled()
    assert all(parameter.is_leaf for parameter in model)


def test_a_method_that_torch_no_longer_decorates_is_taken_as_it_is() -> None:
    def method() -> None: ...

    assert undecorated(method) is method
