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
    """Measure the seconds of one update on ``parts`` that are thrown away: their optimizers' states change.

    The first update warms up caches and allocators; the faster of the two that follow counts.
    """
    seconds = [sum(time_update(parts, runtime, train, number).values()) for number in range(3)]
    return min(seconds[1:])


def time_update(
    parts: TrainingParts, runtime: Runtime, train: TrainSettings, number: int
) -> dict[StepPart, float]:
    """Take update ``number`` of ``parts`` and return the seconds of each part of a whole update.

    At most two micro-batches are computed, and counted as often as a whole update has them: the first one
    makes the gradients, and each later one adds to them, as in a run. The learning rate is zero: a rate that
    diverges without its warm-up would have the optimizers skipped, and so not timed.
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
    """As :func:`fp32_peak` with ``threads``, measured once in a process."""
    torch.set_num_threads(threads)
    return fp32_peak(device)


def fp32_peak(device: torch.device) -> float:
    """Measure the FLOP per second of a matrix product in fp32, the faster of two sizes; takes 0.25 s."""
    rates = []
    for side in _PEAK_SIDES:
        side *= 1 if device.type == "cpu" else 4
        matrix = torch.ones(side, side, device=device)  # draws nothing: the generator is the run's
        seconds = best_seconds(partial(torch.matmul, matrix, matrix), device, _PEAK_SECONDS)
        rates.append(2 * side**3 / seconds)
    return max(rates)
