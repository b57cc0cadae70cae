"""Estimates what a run requires from its settings: steps, memory, disk. Loads no torch."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cpulm.address_space import limit_bytes, more_memory, room_in_addresses
from cpulm.errors import ResourceError
from cpulm.estimate.memory import Arithmetic, memory_bytes
from cpulm.model.counts import count, count_adapters, flops_per_token
from cpulm.settings import ModelSettings, Settings, TrainSettings
from cpulm.system.machine import Machine
from cpulm.system.monitor import resident_bytes
from cpulm.units import format_bytes

_TAUGHT_COST = 4 / 3
"""Each generation after the first takes so many times as long, because of its teacher."""


def generations_cost(number: int) -> float:
    """How many times as long as one training so many generations take."""
    return 1.0 + (number - 1) * _TAUGHT_COST


@dataclass(frozen=True)
class Requirements:
    """What a run requires. ``steps`` is None if the horizon is a time.

    ``most_steps`` are the updates after which a run with a horizon in time ends at the latest, if there are
    such. ``step_seconds`` and ``peak_flops_per_second`` are measured later.
    """

    params_total: int
    params_non_embedding: int
    tokens_per_step: int
    steps: int | None
    train_tokens: int
    epochs: float | None
    memory_bytes: int
    disk_bytes: int
    most_steps: int | None = None
    generations: int = 1
    step_seconds: float | None = None
    peak_flops_per_second: float | None = None

    @property
    def last_step(self) -> int | None:
        """The update after which the run ends at the latest; None if only a time ends it."""
        return self.most_steps if self.steps is None else self.steps

    @property
    def train_seconds(self) -> float | None:
        """Seconds in training steps alone; None if unknown or if only a time ends the run."""
        if self.last_step is None or self.step_seconds is None:
            return None
        return self.last_step * self.step_seconds * generations_cost(self.generations) / self.generations


def total_steps(train: TrainSettings, tokens_per_step: int, train_tokens: int) -> int | None:
    """Return the horizon in updates; None if it is a time."""
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return math.ceil(train.tokens / tokens_per_step)
    if train.epochs is not None:
        return math.ceil(train.epochs * train_tokens / tokens_per_step)
    return None


def most_steps(train: TrainSettings, tokens_per_step: int, train_tokens: int) -> int | None:
    """Return the updates after which ``train.max_passes`` ends each generation; None if it does not."""
    if train.max_passes is None or not train.ends_in_time:
        return None
    return math.ceil(train.max_passes * train_tokens / tokens_per_step)


def seconds_needed(plan: Requirements, train: TrainSettings) -> float | None:
    """Return the run's duration: the requested time, or that of its steps if it is less; None if unknown."""
    requested = _seconds_requested(train)
    in_steps = plan.train_seconds
    if requested is None or in_steps is None:
        return in_steps if requested is None else requested
    return min(requested, in_steps)


def expected_passes(
    plan: Requirements, train: TrainSettings, trained_tokens: int = 0, *, spent_seconds: float = 0.0
) -> float | None:
    """How often a model of the run will see its training text; with a horizon in time, by its measured step.

    Generations share the horizon.

    Args:
        trained_tokens: before now; what is left until a moment of the wall clock comes on top.
        spent_seconds: of ``train.max_time``, on what came before the first update.
    """
    if plan.epochs is not None:
        return plan.epochs / train.generations
    seconds = _seconds_requested(train)
    if seconds is None or not plan.step_seconds:
        return None
    before = trained_tokens if train.until is not None else 0
    seconds = seconds if train.until is not None else max(0.0, seconds - spent_seconds)
    tokens = before + seconds / plan.step_seconds * plan.tokens_per_step
    return min(tokens / plan.train_tokens / train.generations, train.max_passes or math.inf)


def _seconds_requested(train: TrainSettings) -> float | None:
    """Return the horizon in time, in seconds from now; None for other horizons."""
    if train.until is not None:
        return max(0.0, datetime.fromisoformat(train.until).timestamp() - time.time())
    return train.max_time


_NOMINAL_FLOPS_PER_SECOND = {"cpu": 1e11, "mps": 1e12, "cuda": 1e13}
"""The order of magnitude of the rate at which a device trains."""


def nominal_seconds(settings: Settings, vocab_size: int, steps: int | None, device: str) -> float | None:
    """Return a run's duration from its settings alone, for decisions that must not depend on the load.

    It is the requested time, else the operations of ``steps`` updates at a nominal rate; None if unknown.
    """
    requested = _seconds_requested(settings.train)
    if requested is not None or steps is None:
        return requested
    flops = flops_per_token(settings.model, vocab_size) * settings.tokens_per_step
    return steps * flops / _NOMINAL_FLOPS_PER_SECOND[device]


def estimate_requirements(
    settings: Settings,
    vocab_size: int,
    train_tokens: int,
    arithmetic: Arithmetic,
    teacher: ModelSettings | None = None,
) -> Requirements:
    """Estimate a run's requirements from its settings; nothing is measured.

    Args:
        teacher: the shape of the model that teaches, if one does.
    """
    counts = count(settings.model, vocab_size)
    steps = total_steps(settings.train, settings.tokens_per_step, train_tokens)
    most = most_steps(settings.train, settings.tokens_per_step, train_tokens)
    return Requirements(
        params_total=counts.total,
        params_non_embedding=counts.non_embedding,
        tokens_per_step=settings.tokens_per_step,
        steps=steps,
        most_steps=None if most is None else most * settings.train.generations,
        generations=settings.train.generations,
        train_tokens=train_tokens,
        epochs=steps * settings.tokens_per_step / train_tokens if steps is not None else None,
        memory_bytes=memory_bytes(settings, vocab_size, arithmetic, teacher),
        disk_bytes=disk_bytes(settings, counts.total) + _teachers_bytes(settings, vocab_size, teacher),
    )


def disk_bytes(settings: Settings, params: int) -> int:
    """Return the bytes of all checkpoints that exist at once, including the one being written.

    Each has in fp32 the weights, two moments of those that are trained and, if the run keeps them, the
    weights' average and the two states of the outer step; with low traffic also what is still to be sent.
    """
    train, adapters = settings.train, count_adapters(settings.model, settings.lora)
    kept, trained = params + adapters, adapters if settings.lora.rank else params
    states = 2 + 2 * (train.outer_steps > 0) + (settings.distributed.mode == "diloco")
    floats = kept * (1 + (train.average_fraction is not None)) + trained * states
    return 4 * floats * (settings.checkpoint.keep + 3)


def _teachers_bytes(settings: Settings, vocab_size: int, teacher: ModelSettings | None) -> int:
    """Return the bytes of the weights of all teachers, which stay in the run's folder."""
    if teacher is None:
        return 0
    teachers = settings.train.generations - 1 + (settings.train.teacher is not None)
    return 4 * count(teacher, vocab_size).total * teachers


def check_disk(needed: int, folder: Path) -> None:
    """Raise ResourceError if ``folder``'s filesystem has fewer than ``needed`` bytes free."""
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ResourceError(
            f"the checkpoints of this run need {format_bytes(needed)}, and {format_bytes(free)} are free "
            f"at {existing}",
            "free some disk space, choose another --out, or lower checkpoint.keep",
        )


def micro_batch_flags(train: TrainSettings, micro_batch_size: int) -> str:
    """Return the flags that split the same batch into micro-batches of another size."""
    accumulate = math.ceil(train.micro_batch_size * train.grad_accum_steps / micro_batch_size)
    return f"--set train.micro_batch_size={micro_batch_size} --set train.grad_accum_steps={accumulate}"


def memory_for_run(machine: Machine) -> int:
    """Return the bytes that a run in this process may have: what is available, and what it holds now."""
    available = machine.memory_available_bytes + resident_bytes()
    in_addresses = room_in_addresses()
    return available if in_addresses is None else min(available, in_addresses)


def check_memory(
    settings: Settings,
    vocab_size: int,
    arithmetic: Arithmetic,
    available: int,
    teacher: ModelSettings | None = None,
) -> None:
    """Raise ResourceError, with flags that fit, if the run needs more bytes than ``available``.

    Args:
        available: as :func:`memory_for_run` gives it: the need is that of the whole process.
        teacher: as in :func:`estimate_requirements`.
    """
    needed = memory_bytes(settings, vocab_size, arithmetic, teacher)
    if needed <= available:
        return
    message = (
        f"this run needs about {format_bytes(needed)} of memory, and {format_bytes(available)} are available"
    )
    raise_limit = "" if limit_bytes() is None else f"{more_memory()}, or: "
    train = settings.train
    size = train.micro_batch_size // 2
    while size >= 1:
        smaller = settings.model_copy(update={"train": train.model_copy(update={"micro_batch_size": size})})
        if memory_bytes(smaller, vocab_size, arithmetic, teacher) <= available:
            flags = micro_batch_flags(train, size)
            raise ResourceError(
                message, f"{raise_limit}the same batch fits in smaller micro-batches: {flags}"
            )
        size //= 2
    raise ResourceError(message, f"{raise_limit}choose a smaller preset, model.n_embd or model.n_layer")
