"""The training update: its effect on the weights, and its measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cpulm.data.batches import TrainingBatches
from cpulm.data.loader import Loader
from cpulm.execution.runtime import choose_runtime
from cpulm.execution.step_timing import time_update
from cpulm.execution.update import STEP_PARTS, StepTimer, TrainingParts, non_finite, training_update
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.training.build import build_random_parts

SETTINGS: Settings = resolve(
    assignments=[
        "model.n_layer=1",
        "model.n_head=2",
        "model.n_embd=16",
        "model.block_size=8",
        "model.dropout=0",
        "train.micro_batch_size=2",
        "runtime.precision=fp32",
        "runtime.threads=1",
    ]
)
RUNTIME = choose_runtime(SETTINGS.runtime, read_machine())
CLIP = 0.5


def parts() -> TrainingParts:
    return build_random_parts(SETTINGS, 40, RUNTIME)


def weights(of: TrainingParts) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in of.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def update(of: TrainingParts, batches: range, **more: Any) -> Any:
    return training_update(of, batches, RUNTIME, CLIP, StepTimer(), **more)


@pytest.mark.parametrize(
    ("loss", "grad_norm", "named"),
    [
        (2.0, 1.0, None),
        (math.nan, 1.0, "the loss is nan"),
        (math.inf, math.nan, "the loss is inf"),
        (2.0, math.inf, "the gradient norm is inf"),
    ],
)
def test_a_non_finite_value_is_named(loss: float, grad_norm: float, named: str | None) -> None:
    assert non_finite(loss, grad_norm) == named


def test_micro_batches_are_one_batch() -> None:
    """Three of them give the loss, the gradient norm and the weights of torch's own steps on all rows."""
    ours, torchs = parts(), parts()
    result = update(ours, range(3))
    x, y = (torch.cat(rows) for rows in zip(*map(torchs.loader.batch, range(3)), strict=True))
    loss = torchs.model(x, targets=y)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(torchs.model.parameters(), CLIP)
    for optimizer in torchs.optimizers:
        optimizer.step()
    assert norm > CLIP
    assert result.problem is None
    assert (result.loss, result.grad_norm) == pytest.approx((float(loss.detach()), float(norm)), rel=1e-5)
    expected = weights(torchs)
    assert not same(expected, weights(parts()))
    for name, value in weights(ours).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is None for parameter in ours.model.parameters())


def times(factor: float) -> Callable[[TrainingParts], TrainingParts]:
    """Parts whose loss is multiplied."""
    return lambda of: replace(of, forward=lambda idx, targets: of.model(idx, targets=targets) * factor)


@pytest.mark.parametrize(("factor", "figure"), [(math.nan, "the loss"), (1e30, "the gradient norm")])
def test_what_is_not_finite_reaches_neither_weights_nor_optimizers(factor: float, figure: str) -> None:
    broken = times(factor)(parts())
    before = weights(broken)
    result = update(broken, range(2))
    assert result.problem.startswith(figure)
    assert same(before, weights(broken))
    assert all(not optimizer.state for optimizer in broken.optimizers)
    assert all(parameter.grad is None for parameter in broken.model.parameters())


def test_a_stop_between_micro_batches_leaves_the_weights() -> None:
    stopped = parts()
    before = weights(stopped)
    assert update(stopped, range(2), should_stop=lambda: True) is None
    assert same(before, weights(stopped))
    assert all(parameter.grad is None for parameter in stopped.model.parameters())
    assert update(stopped, range(1), should_stop=lambda: True) is not None  # nothing is left to stop


def test_complete_gradients_are_shown_before_they_are_clipped() -> None:
    seen: list[float] = []
    watched = parts()

    def look() -> None:
        gradients = [p.grad for p in watched.model.parameters() if p.grad is not None]
        seen.append(float(torch.nn.utils.get_total_norm(gradients)))

    result = update(watched, range(2), on_gradients=look)
    assert seen == [pytest.approx(result.grad_norm)]
    assert seen[0] > CLIP


class Counted(Loader):
    """Notes which batches were made."""

    def __init__(self, loader: TrainingBatches) -> None:
        self._loader = loader
        self.made: list[int] = []

    def batch(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.made.append(i)
        return self._loader.batch(i)


@pytest.mark.parametrize(("grad_accum_steps", "made"), [(1, [3]), (2, [6, 7]), (8, [6, 7])])
def test_a_measurement_takes_at_most_two_micro_batches(grad_accum_steps: int, made: list[int]) -> None:
    measured = parts()
    loader = Counted(measured.loader)
    train = SETTINGS.train.model_copy(update={"grad_accum_steps": grad_accum_steps})
    before = weights(measured)
    seconds = time_update(replace(measured, loader=loader), RUNTIME, train, 3)
    assert loader.made == made
    assert tuple(seconds) == STEP_PARTS
    assert all(value > 0 for value in seconds.values())
    assert all(optimizer.state for optimizer in measured.optimizers)  # the whole update was taken
    assert same(before, weights(measured))  # at a learning rate of zero
