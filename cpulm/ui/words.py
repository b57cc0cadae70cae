"""The wording of a run in all outputs: its model, machine, end, amounts and rates."""

from __future__ import annotations

import math
from typing import Any

from cpulm.events import END_REASONS, GenerationStarted, RolledBack, RunFinished, RunStarted, Validated
from cpulm.ui.terminal_text import figure, harmless, significant
from cpulm.units import (
    LONGEST,
    format_bits_per_byte,
    format_bytes,
    format_count,
    format_duration,
    typed_duration,
)

NO_PRESET = "none"
"""The preset in :class:`cpulm.events.RunStarted` of a run without one; it is not shown."""

DURATIONS = ("train.max_time", "checkpoint.every")
"""The settings in seconds, which people write as ``8h``."""

_SLOWER, _BUSY = 1.1, 0.05
"""From which multiple of the estimate, and from which share of the processors, the reason is given."""
_TELLING_SECONDS = 1.0
"""The shortest estimate that the time of the steps is compared with."""
_HIGHEST_LOSS = 100.0
"""The perplexity of a higher loss says nothing, and may be more than a float holds."""

TIME_PARTS = {
    "training": "training steps",
    "data": "making batches",
    "validation": "validation",
    "checkpoints": "checkpoints",
    "undone": "steps undone by rollbacks",
    "rest": "samples and other",
}
"""The parts of a run's time, as a report names them, in words."""


def describe_rollback(event: RolledBack) -> str:
    """``step 812: the loss is nan; back to step 800, 1 batch left out (1 of at most 3 times)``."""
    batches = len(event.skipped_batches)
    left_out = f"{batches} batch{'es' if batches != 1 else ''} left out"
    return (
        f"step {event.step}: {harmless(event.reason)}; back to step {event.to_step}, {left_out} "
        f"({event.count} of at most {event.limit} times)"
    )


def describe_average(event: Validated) -> str:
    """`` of the averaged weights (trained weights: 4.1567)``; empty if the run keeps no average."""
    if event.trained_loss is None or event.averaged_loss is None:
        return ""
    if event.average_is_better:
        return f" of the averaged weights (trained weights: {figure(event.trained_loss)})"
    return f" of the trained weights (averaged weights: {figure(event.averaged_loss)})"


def describe_generation(event: GenerationStarted) -> str:
    """``generation 2 of 3 after step 500: new weights, taught by the model of step 450 (loss 4.2134)``."""
    taught = ""
    if event.teacher_step is not None and event.teacher_loss is not None:
        taught = f", taught by the model of step {event.teacher_step} (loss {figure(event.teacher_loss)})"
    return (
        f"generation {event.generation} of {event.generations} after step {event.step}: new weights{taught}"
    )


def describe_model(started: RunStarted) -> str:
    """``tiny-1: preset tiny, 3.15 M parameters (2.10 M without embeddings), ...``."""
    preset = "" if started.preset == NO_PRESET else f"preset {harmless(started.preset)}, "
    return (
        f"{harmless(started.name)}: {preset}"
        f"{format_count(started.params_total)} parameters "
        f"({format_count(started.params_non_embedding)} without embeddings), "
        f"{started.tokens_per_step:,} tokens a step, "
        f"{format_count(started.train_tokens)} training tokens"
    )


def describe_run(started: RunStarted) -> str:
    """``cpu Intel Xeon, fp32, compiled, 2 threads, generation 1 of 2``."""
    name = harmless(started.device_name)
    device = name if name.lower() == started.device.lower() else f"{started.device} {name}".strip()
    words = [device, started.precision, compilation(started), threads(started)]
    if started.generations > 1:
        words.append(f"generation {started.generation} of {started.generations}")
    return ", ".join(words)


def compilation(started: RunStarted) -> str:
    return "compiled" if started.compiled else "eager"


def threads(started: RunStarted) -> str:
    each = f"{started.threads} thread{'' if started.threads == 1 else 's'}"
    return each if started.processes == 1 else f"{started.processes} processes of {each}"


def end_lines(event: RunFinished) -> list[str]:
    """The last lines of a run: how it ended, its speed, its best loss, its checkpoint."""
    how = END_REASONS[event.reason]
    lines = [f"{how} after step {event.step}: {_time_taken(event)}", *_why_slower(event), _speed(event)]
    if event.best_loss is not None:
        value = event.best_bits_per_byte
        bits = "" if value is None else f", {format_bits_per_byte(value, event.text_lost)}"
        perplexity = _perplexity(event.best_loss)
        best = f"best validation loss {figure(event.best_loss)} at step {event.best_step}"
        lines.append(f"{best}{bits}{perplexity}")
    if event.checkpoint is not None:
        lines.append(f"checkpoint {harmless(event.checkpoint)}")
    return lines


def _time_taken(event: RunFinished) -> str:
    """``4m 10s; steps alone 3% over their estimate of 4m 02s``: the first counts validations too."""
    took = format_duration(event.elapsed_seconds)
    if event.estimated_seconds is None:
        return took
    estimated = format_duration(event.estimated_seconds)
    if event.time_over_estimate is None:
        if event.reason == "horizon":  # one in time, in which the preparation counts
            return f"{took} of training in {estimated} with preparation"
        return f"{took} of {estimated}"
    if event.estimated_seconds < _TELLING_SECONDS:
        return took
    ratio = event.time_over_estimate
    over = round(100 * (ratio - 1))
    if not over:
        return f"{took}; steps alone took the {estimated} estimated"
    how = f"{abs(over)}% {'over' if over > 0 else 'under'}" if ratio < 2 else f"{ratio:.1f} times"
    return f"{took}; steps alone {how} their estimate of {estimated}"


def _why_slower(event: RunFinished) -> list[str]:
    """What is known of the reason if the steps took longer than estimated."""
    slower, others = event.time_over_estimate or 0.0, event.others_cpu or 0.0
    if slower < _SLOWER or others < _BUSY:
        return []
    return [f"slower: other programs took {others:.0%} of the processor"]


def _perplexity(loss: float) -> str:
    return f", perplexity {significant(math.exp(loss), 4)}" if loss < _HIGHEST_LOSS else ""


def _speed(event: RunFinished) -> str:
    """``1.43 M tokens at 11.0 K tok/s: 172 GFLOP/s, 96% of the machine's fp32 peak``."""
    tokens = f"{format_count(event.tokens)} tokens"
    if not event.tokens_per_second:  # nothing was left to train
        return tokens
    tokens += f" at {format_count(event.tokens_per_second)} tok/s"
    if event.flops_per_second is None:
        return tokens
    share = "" if event.share_of_peak is None else f", {share_of_peak(event.share_of_peak)}"
    return f"{tokens}: {significant(event.flops_per_second / 1e9)} GFLOP/s{share}"


def share_of_peak(share: float) -> str:
    """``96% of the machine's fp32 peak``, ``3.9 times the machine's fp32 peak`` with int8 or bf16."""
    share_words = f"{share:.0%} of" if share < 1.005 else f"{share:.1f} times"
    return f"{share_words} the machine's fp32 peak"


def typed_value(key: str, value: Any) -> Any:
    """The value of the setting ``key``, with seconds as people type them, such as ``8h``."""
    seconds = key in DURATIONS and isinstance(value, (int, float)) and 0 < value < LONGEST
    return typed_duration(value) if seconds else value


def amount(count: float, unit: str) -> str:
    """``12.1 MiB`` for bytes, ``340 batches`` for everything else."""
    if unit in ("bytes", "B"):
        return format_bytes(count)
    return f"{format_count(count)} {harmless(unit)}".rstrip()


def rate(per_second: float, unit: str) -> str:
    """``4.2 MiB/s`` for bytes, ``12.1 batches/s`` for everything else."""
    if unit in ("bytes", "B"):
        return f"{format_bytes(per_second)}/s"
    shown = format_count(per_second) if per_second >= 1000 else significant(per_second)
    return f"{shown} {harmless(unit)}/s" if unit else f"{shown}/s"
