"""What a run says while it goes: frozen records, and their way to JSON and back.

A run emits events; listeners (the metrics file, the dashboard, plain lines, JSON lines)
receive them. An event holds plain values only and knows nothing of who reads it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from cpulm import typed_json


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events. ``time`` is in seconds since the epoch."""

    kind: ClassVar[str] = ""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A run, new or resumed, is about to take its first step.

    ``steps`` is the horizon in optimizer updates; None where the horizon is ``max_time_seconds``.
    ``notes`` says in words what was chosen for this machine and why. ``peak_flops_per_second`` is what a
    matrix product in fp32 reached as the run began; None where an earlier version wrote the record.
    ``precision_reason`` says why ``precision`` was chosen; empty where an earlier version wrote the record.
    """

    kind: ClassVar[str] = "run_started"
    run: str
    name: str
    preset: str
    version: str
    step: int
    steps: int | None
    max_time_seconds: float | None
    device: str
    device_name: str
    precision: str
    compiled: bool
    threads: int
    params_total: int
    params_non_embedding: int
    tokens_per_step: int
    flops_per_token: float
    train_tokens: int
    val_tokens: int
    vocab_size: int
    block_size: int
    notes: tuple[str, ...] = ()
    peak_flops_per_second: float | None = None
    precision_reason: str = ""


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """One optimizer update. ``loss`` is in nats per token, the mean over the step's tokens.

    ``step`` counts finished updates, ``tokens`` trained tokens, ``elapsed_seconds`` training time
    of the whole run, interruptions left out. ``data_seconds`` of ``step_seconds`` went into
    making the batch. ``lr`` is the learning rate of AdamW, ``muon_lr`` that of Muon; None if everything is
    AdamW's, or if an earlier version wrote the record.
    """

    kind: ClassVar[str] = "step"
    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    epoch: float
    elapsed_seconds: float
    step_seconds: float
    data_seconds: float
    progress: float
    muon_lr: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerStats(Event):
    """What the update ``step`` did to each matrix of the model, measured every so many updates.

    One entry per matrix in all four. ``names`` are as in the model, ``blocks.0.attn.qkv``. Norms are
    Frobenius norms: ``weight_norms`` after the update, ``grad_norms`` before clipping. ``update_ratios`` are
    the norm of the update over the norm of the weights.
    """

    kind: ClassVar[str] = "layer_stats"
    step: int
    names: tuple[str, ...]
    weight_norms: tuple[float, ...]
    grad_norms: tuple[float, ...]
    update_ratios: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Validated(Event):
    """A pass over the validation split. ``whole`` is False where only some batches were taken."""

    kind: ClassVar[str] = "validated"
    step: int
    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    seconds: float
    whole: bool
    best: bool


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint stands on the disk. ``role`` is ``latest`` or ``best``; the best is the latest, too.

    ``saves`` is its number among the run's checkpoints: there may be several of one step.
    """

    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str
    role: str
    bytes: int
    seconds: float
    saves: int = 0


@dataclass(frozen=True, kw_only=True)
class RolledBack(Event):
    """The run went from ``step`` back to its checkpoint of ``to_step``; the steps between count no more.

    ``reason`` says in words what was wrong. ``skipped_batches`` are the micro-batches, by their number in
    the loader, that are left out from now on. ``count`` is the how manieth time it is since the last new
    best validation loss, ``limit`` the most that is allowed.
    """

    kind: ClassVar[str] = "rolled_back"
    step: int
    to_step: int
    reason: str
    skipped_batches: tuple[int, ...]
    count: int
    limit: int


@dataclass(frozen=True, kw_only=True)
class SampleMade(Event):
    """Text from the model as it stands."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class MachineSampled(Event):
    """The machine's state. Per cents are of the whole machine; None where it cannot be read."""

    kind: ClassVar[str] = "machine"
    cpu_percent: float
    process_cpu_percent: float
    cpu_mhz: float | None
    cpu_temperature: float | None
    process_bytes: int
    memory_used_bytes: int
    memory_total_bytes: int


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """How far a stage outside the training steps is; not kept in the metrics.

    ``done`` and ``total`` are in ``unit``; ``total`` is None where unknown. ``finished`` marks the
    stage's last event.
    """

    kind: ClassVar[str] = "progress"
    stage: str
    done: float
    total: float | None
    unit: str
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something worth a line: ``level`` is ``info`` or ``warning``."""

    kind: ClassVar[str] = "notice"
    level: str
    message: str


EndReason = Literal["horizon", "target_loss", "patience", "stopped", "diverged", "no_room", "failed"]
"""Why a run ended; ``no_room``: no checkpoint could be written, or memory ran out."""

COMPLETE: tuple[EndReason, ...] = ("horizon", "target_loss", "patience")
"""Reasons of a run that has nothing left to do."""

END_REASONS: dict[EndReason, str] = {
    "horizon": "finished",
    "target_loss": "target loss reached",
    "patience": "no improvement, ended early",
    "stopped": "stopped, can be resumed",
    "diverged": "diverged",
    "no_room": "out of disk space or memory",
    "failed": "failed",
}
"""The reasons in words."""


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The last event of a run.

    ``estimated_seconds`` was reported at its start: the time given, or the time of all training steps. The
    steps since the last start took ``time_over_estimate`` times their share of it; None if the run did not
    reach a horizon in steps. ``tokens_per_second`` and ``flops_per_second`` are of the training steps since
    the last start; ``share_of_peak`` is relative to a matrix product in fp32, and may be above 1 if products
    are in int8 or bf16.
    """

    kind: ClassVar[str] = "run_finished"
    step: int
    tokens: int
    reason: EndReason
    elapsed_seconds: float
    estimated_seconds: float | None
    best_loss: float | None
    best_step: int | None
    best_bits_per_byte: float | None
    tokens_per_second: float
    checkpoint: str | None
    time_over_estimate: float | None = None
    flops_per_second: float | None = None
    share_of_peak: float | None = None


Listener = Callable[[Event], None]

KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        RunStarted,
        StepDone,
        LayerStats,
        Validated,
        CheckpointSaved,
        RolledBack,
        SampleMade,
        MachineSampled,
        Progress,
        Notice,
        RunFinished,
    )
}


def to_json(event: Event) -> str:
    """One line of JSON. Non-finite floats become the strings ``"nan"``, ``"inf"``, ``"-inf"``."""
    record: dict[str, Any] = {"event": event.kind}
    for spec in dataclasses.fields(event):
        value = getattr(event, spec.name)
        if isinstance(value, float):
            value = round(value, 3) if spec.name == "time" else _number(value)
        elif isinstance(value, tuple):
            value = [_number(item) if isinstance(item, float) else item for item in value]
        record[spec.name] = value
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def from_json(line: str) -> Event:
    """The event in one line of JSON; keys that this version does not know are ignored.

    Raises:
        ValueError: where the line is no event.
    """
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise ValueError("not an event")
    cls = KINDS.get(record["event"])
    if cls is None:
        raise ValueError(f"unknown event {record['event']!r}")
    try:
        return typed_json.from_record(cls, record)
    except ValueError as error:
        raise ValueError(f"incomplete event {record['event']!r}: {error}") from error


def is_sound(record: Any) -> bool:
    """Whether JSON's ``record`` is an event with a time, none of whose values is impossible.

    For readers that take few events out of many, and may do with parts of them.
    """
    if not isinstance(record, dict) or not isinstance(record.get("event"), str) or "time" not in record:
        return False
    return typed_json.is_sound(KINDS.get(record["event"], Event), record)


def _number(value: float) -> float | str:
    """Seven significant digits: more than a loss in fp32 holds, and half the bytes of a repr."""
    if not math.isfinite(value):
        return str(value)
    return float(f"{value:.7g}")
