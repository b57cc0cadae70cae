"""One training update: runs and all measurements of a step use this code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from cpulm.data.batch_pieces import BatchPiece
from cpulm.data.batches import TrainingBatches
from cpulm.execution.runtime import Runtime
from cpulm.execution.stopwatch import synchronize
from cpulm.execution.teacher import Teacher
from cpulm.model.distillation import DistillationLoss
from cpulm.model.transformer import Transformer
from cpulm.optim.clip import clip_gradients
from cpulm.optim.weight_average import WeightAverage

Forward = Callable[..., Any]
"""Computes the training loss from (idx, targets=...): the model or the compiled model. With a teacher, its
``distillation_loss``."""

StepPart = Literal["data", "forward", "backward", "optimizer"]
STEP_PARTS: tuple[StepPart, ...] = ("data", "forward", "backward", "optimizer")
"""The parts of an update, in order. ``optimizer`` includes clipping and freeing the gradients."""


class GradientExchange(Protocol):
    """The other processes that compute a part of every update."""

    def pieces(self, batches: Sequence[int], batch_size: int) -> list[BatchPiece]:
        """Return what this process computes of micro-batches with these indices."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum the gradients of the model, and ``values``, over all processes."""


@dataclass
class TrainingParts:
    """The objects that a training update changes, and the function that computes its loss.

    Attributes:
        teacher: whose distribution the model learns from, beside the text; None: from the text alone.
        average: of the model's weights; None if the run keeps none.
        exchange: with the run's other processes; None: this is the only one.
    """

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    loader: TrainingBatches
    forward: Forward
    teacher: Teacher | None = None
    average: WeightAverage | None = None
    exchange: GradientExchange | None = None

    def loss(self, idx: Tensor, targets: Tensor) -> DistillationLoss:
        """The losses of a micro-batch; without a teacher the objective is the cross-entropy."""
        if self.teacher is None:
            loss: Tensor = self.forward(idx, targets=targets)
            return DistillationLoss(loss, loss.detach(), torch.zeros_like(loss))
        distilled: DistillationLoss = self.forward(idx, targets, self.teacher.output(idx))
        return distilled

    def zero_grad(self) -> None:
        """Free all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


class StepTimer:
    """Measures the seconds of each part of an update.

    Args:
        device: synchronized at the end of each part, so that its work is counted in the part that queued it.
            None: no synchronization, as in a run, in which the CPU queues work ahead of an accelerator.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[StepPart, float] = dict.fromkeys(STEP_PARTS, 0.0)
        self._device = device
        self._last = time.perf_counter()

    def lap(self, part: StepPart) -> None:
        """Add the time since the last lap to ``part``."""
        if self._device is not None:
            synchronize(self._device)
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


@dataclass(frozen=True)
class UpdateResult:
    """The loss and the gradient norm of one update.

    Attributes:
        loss: cross-entropy on the text, mean over the micro-batches, in nats per token.
        divergence: of the model's distribution from the teacher's, in nats per token; None without a teacher.
        grad_norm: of all gradients together, before clipping.
        problem: names the value that is not finite; the weights were not updated. None if both are finite.
    """

    loss: float
    grad_norm: float
    problem: str | None
    divergence: float | None = None


def training_update(
    parts: TrainingParts,
    batches: Sequence[int],
    runtime: Runtime,
    grad_clip: float,
    timer: StepTimer,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_gradients: Callable[[], None] = lambda: None,
) -> UpdateResult | None:
    """Update the weights once: forward, backward, clip, check, optimizers; then free the gradients.

    Non-finite gradients never reach the weights or the optimizers' states.

    Args:
        batches: indices of the micro-batches in the loader, at least one; their gradients are averaged.
        grad_clip: as in :func:`cpulm.optim.clip.clip_gradients`.
        should_stop: checked between micro-batches.
        on_gradients: called when the gradients are complete and not yet clipped.

    Returns:
        None if ``should_stop`` ended the update: the weights have not changed, the random state has.
    """
    losses = accumulate_gradients(parts, batches, runtime, timer, should_stop)
    if losses is None:
        parts.zero_grad()
        return None
    loss, divergence = losses
    on_gradients()
    grad_norm = clip_gradients(parts.model.parameters(), grad_clip)
    problem = non_finite(loss, grad_norm)
    if problem is None:
        for optimizer in parts.optimizers:
            optimizer.step()
    parts.zero_grad()
    timer.lap("optimizer")
    return UpdateResult(loss, grad_norm, problem, None if parts.teacher is None else divergence)


def accumulate_gradients(
    parts: TrainingParts,
    batches: Sequence[int],
    runtime: Runtime,
    timer: StepTimer,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[float, float] | None:
    """Run forward and backward over the micro-batches: an update up to the gradients.

    Arguments are those of :func:`training_update`. With other processes, each computes its pieces, and the
    gradients are summed at the end; a stop requested in one of them ends the update in all.

    Returns:
        The mean loss on the text and the mean divergence from the teacher (0 without one), in nats per
        token; None if ``should_stop`` ended the update.
    """
    count, stopped, exchange = len(batches), False, parts.exchange
    pieces = [BatchPiece(index) for index in batches]
    if exchange is not None:
        pieces = exchange.pieces(batches, parts.loader.batch_size)
    total = torch.zeros(2)
    for number, piece in enumerate(pieces, 1):
        inputs, targets, share = piece.load(parts.loader)
        x, y = inputs.to(runtime.device), targets.to(runtime.device)
        timer.lap("data")
        with runtime.autocast():
            losses = parts.loss(x, y)
        timer.lap("forward")
        objective = losses.objective if share == 1.0 else losses.objective * share
        (objective / count if count > 1 else objective).backward()
        shown = torch.stack(losses[1:])
        total = total.to(shown.device) + (shown if share == 1.0 else shown * share)
        timer.lap("backward")
        if number < len(pieces) and should_stop():
            stopped = True
            break
    loss, divergence = (value / count for value in total.tolist())
    if exchange is not None:
        loss, divergence, stops = exchange.sum((loss, divergence, float(stopped)))
        stopped = stops > 0
        timer.lap("backward")
    return None if stopped else (loss, divergence)


def non_finite(loss: float, grad_norm: float) -> str | None:
    """Return a message that names the value that is not finite; None if both are finite."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    return None
