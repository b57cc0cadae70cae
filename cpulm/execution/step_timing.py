"""Measures how long one update takes on this machine, and the machine's peak in fp32."""

from __future__ import annotations

from functools import lru_cache, partial

import torch

from cpulm.execution.runtime import Runtime
from cpulm.execution.stopwatch import best_seconds
from cpulm.execution.update import StepPart, StepTimer, TrainingParts, training_update
from cpulm.optim.build_optimizers import set_lr_scale
from cpulm.settings import TrainSettings

_MICRO_BATCHES = 2
_PEAK_SIDES, _PEAK_SECONDS = (512, 1024), 0.1


def measure_step(parts: TrainingParts, runtime: Runtime, train: TrainSettings) -> float:
    """Measure the seconds of one update: the mean of two, after one that warms up caches and allocators.

    Discard ``parts`` afterwards: the optimizers' states have changed.
    """
    seconds = [sum(time_update(parts, runtime, train, number).values()) for number in range(3)]
    return sum(seconds[1:]) / len(seconds[1:])


def time_update(
    parts: TrainingParts, runtime: Runtime, train: TrainSettings, number: int
) -> dict[StepPart, float]:
    """Run update ``number`` and return the seconds of each part of a full update.

    At most two micro-batches are computed, and their time is scaled to the number in a full update: as in a
    run, the first creates the gradients and each later one adds to them. The learning rate is zero, because a
    rate that diverges without warm-up would make the update skip the optimizers, and they would not be timed.
    """
    whole = train.grad_accum_steps
    computed = min(whole, _MICRO_BATCHES)
    batches = range(number * computed, (number + 1) * computed)
    set_lr_scale(parts.optimizers, 0.0)
    timer = StepTimer(runtime.device)
    training_update(parts, batches, runtime, train.grad_clip, timer)
    return {
        part: seconds * (1.0 if part == "optimizer" else whole / computed)
        for part, seconds in timer.seconds.items()
    }


@lru_cache
def cached_fp32_peak(device: torch.device, threads: int) -> float:
    """Return :func:`fp32_peak` with ``threads``, measured once per process."""
    torch.set_num_threads(threads)
    return fp32_peak(device)


def fp32_peak(device: torch.device) -> float:
    """Measure the FLOP per second of a matrix product in fp32, the faster of two sizes; takes 0.25 s."""
    rates = []
    for side in _PEAK_SIDES:
        side *= 1 if device.type == "cpu" else 4
        matrix = torch.ones(side, side, device=device)  # not random: the default generator is the run's
        seconds = best_seconds(partial(torch.matmul, matrix, matrix), device, _PEAK_SECONDS)
        rates.append(2 * side**3 / seconds)
    return max(rates)
