"""Gradient clipping against torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from cpulm.optim.clip import clip_gradients


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    made = [torch.nn.Parameter(torch.zeros(*shape)) for shape in ((7, 5), (16,), (3, 3))]
    for p in made[:-1]:  # the last one has no gradient
        p.grad = torch.randn(p.shape, generator=generator)
    return made


@pytest.mark.parametrize("limit", [0.01, 1.0, 100.0, 0.0])
def test_norm_and_gradients_are_those_of_torch(limit: float) -> None:
    ours, theirs = parameters(), parameters()
    norm = clip_gradients(ours, limit)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, limit or math.inf)))
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=0.0)
    assert ours[-1].grad is None


def test_gradients_within_the_limit_are_not_touched() -> None:
    ours = parameters()
    before = [p.grad for p in ours[:-1]]
    versions = [grad._version for grad in before if grad is not None]
    clip_gradients(ours, 100.0)
    assert [p.grad for p in ours[:-1]] == before
    assert [grad._version for grad in before if grad is not None] == versions


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_non_finite_norm_is_reported(value: float) -> None:
    ours = parameters()
    assert ours[0].grad is not None
    ours[0].grad[0, 0] = value
    assert not math.isfinite(clip_gradients(ours, 1.0))
