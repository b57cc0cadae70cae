"""Defines the events of a run, frozen dataclasses, and converts them to JSON and back.

A run emits events; listeners (the run log, the dashboard, plain lines, JSON lines) receive them. An event
holds plain values only and knows nothing of who reads it. Every number of an event that comes from a file
is checked: its type says what it may be.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from cpulm import typed_json
from cpulm.typed_json import LARGEST, LATEST

Count = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer of 64 bits."""
Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
"""A finite number of moderate size."""
Moment = Annotated[float, Meta(ge=0, le=LATEST)]
"""Seconds since the epoch."""
if TYPE_CHECKING:
    Loss = float
    """Any float: in a run in trouble a loss is NaN or infinite. JSON has words for these."""
else:
    Loss = float | Literal["nan", "inf", "-inf"]
_LOSSES = {"loss", "grad_norm", "perplexity", "bits_per_byte", "best_loss", "best_bits_per_byte"}
"""The fields of type :data:`Loss`, of all events."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events. ``time`` is in seconds since the epoch."""

    kind: ClassVar[str] = ""
    time: Moment = field(default_factory=time.time)


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
    step: Count
    steps: Count | None
    max_time_seconds: Number | None
    device: str
    device_name: str
    precision: str
    compiled: bool
    threads: Count
    params_total: Count
    params_non_embedding: Count
    tokens_per_step: Count
    flops_per_token: Number
    train_tokens: Count
    val_tokens: Count
    vocab_size: Count
    block_size: Count
    notes: tuple[str, ...] = ()
    peak_flops_per_second: Number | None = None
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
    step: Count
    loss: Loss
    lr: Number
    grad_norm: Loss
    tokens: Count
    epoch: Number
    elapsed_seconds: Number
    step_seconds: Number
    data_seconds: Number
    progress: Number
    muon_lr: Number | None = None


@dataclass(frozen=True, kw_only=True)
class LayerStats(Event):
    """What the update ``step`` did to each matrix of the model, measured every so many updates.

    One entry per matrix in all four. ``names`` are as in the model, ``blocks.0.attn.qkv``. Norms are
    Frobenius norms: ``weight_norms`` after the update, ``grad_norms`` before clipping. ``update_ratios`` are
    the norm of the update over the norm of the weights.
    """

    kind: ClassVar[str] = "layer_stats"
    step: Count
    names: tuple[str, ...]
    weight_norms: tuple[Number, ...]
    grad_norms: tuple[Number, ...]
    update_ratios: tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class Validated(Event):
    """A pass over the validation split. ``whole`` is False where only some batches were taken."""

    kind: ClassVar[str] = "validated"
    step: Count
    loss: Loss
    perplexity: Loss
    bits_per_byte: Loss
    tokens: Count
    seconds: Number
    whole: bool
    best: bool


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint stands on the disk. ``role`` is ``latest`` or ``best``; the best is the latest, too.

    ``saves`` is its number among the run's checkpoints: there may be several of one step.
    """

    kind: ClassVar[str] = "checkpoint"
    step: Count
    path: str
    role: str
    bytes: Count
    seconds: Number
    saves: Count = 0


@dataclass(frozen=True, kw_only=True)
class RolledBack(Event):
    """The run went from ``step`` back to its checkpoint of ``to_step``; the steps between count no more.

    ``reason`` says in words what was wrong. ``skipped_batches`` are the micro-batches, by their number in
    the loader, that are left out from now on. ``count`` is the how manieth time it is since the last new
    best validation loss, ``limit`` the most that is allowed.
    """

    kind: ClassVar[str] = "rolled_back"
    step: Count
    to_step: Count
    reason: str
    skipped_batches: tuple[Count, ...]
    count: Count
    limit: Count


@dataclass(frozen=True, kw_only=True)
class SampleMade(Event):
    """Text from the model as it stands."""

    kind: ClassVar[str] = "sample"
    step: Count
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class MachineSampled(Event):
    """The machine's state. Per cents are of the whole machine; None where it cannot be read."""

    kind: ClassVar[str] = "machine"
    cpu_percent: Number
    process_cpu_percent: Number
    cpu_mhz: Number | None
    cpu_temperature: Number | None
    process_bytes: Count
    memory_used_bytes: Count
    memory_total_bytes: Count


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """How far a stage outside the training steps is; not kept in the metrics.

    ``done`` and ``total`` are in ``unit``; ``total`` is None where unknown. ``finished`` marks the
    stage's last event.
    """

    kind: ClassVar[str] = "progress"
    stage: str
    done: Number
    total: Number | None
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
    "target_loss": "reached its target loss",
    "patience": "ended early without improvement",
    "stopped": "stopped with everything saved",
    "diverged": "diverged",
    "no_room": "ran out of disk space or memory",
    "failed": "failed",
}
"""What the run did in the end, by the reason: the only words for it in reports and on screens."""


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
    step: Count
    tokens: Count
    reason: EndReason
    elapsed_seconds: Number
    estimated_seconds: Number | None
    best_loss: Loss | None
    best_step: Count | None
    best_bits_per_byte: Loss | None
    tokens_per_second: Number
    checkpoint: str | None
    time_over_estimate: Number | None = None
    flops_per_second: Number | None = None
    share_of_peak: Number | None = None


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
    """Return one line of JSON. Non-finite floats become the strings ``"nan"``, ``"inf"``, ``"-inf"``."""
    record: dict[str, Any] = {"event": event.kind}
    for spec in dataclasses.fields(event):
        value = getattr(event, spec.name)
        if isinstance(value, float):
            value = round(value, 3) if spec.name == "time" else _number(value)
        elif isinstance(value, tuple):
            value = [_number(item) if isinstance(item, float) else item for item in value]
        record[spec.name] = value
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class _Head(msgspec.Struct):
    """What every event has. The time is required here, for its default is that of an event made now."""

    event: str
    time: Moment


_HEAD = msgspec.json.Decoder(_Head)
_DECODERS = {kind: msgspec.json.Decoder(cls) for kind, cls in KINDS.items()}


def from_json(line: str | bytes) -> Event:
    """Return the event in one line of JSON; keys that this version does not know are ignored.

    Raises:
        ValueError: the line is not an event, or one of its values is impossible.
    """
    kind = typed_json.decode(line, _HEAD).event
    if kind not in _DECODERS:
        raise ValueError(f"unknown event {kind!r}")
    event = typed_json.decode(line, _DECODERS[kind])
    for name in vars(event).keys() & _LOSSES:
        value = getattr(event, name)
        if isinstance(value, str):
            object.__setattr__(event, name, float(value))
    return event


def line_start(kind: type[Event]) -> bytes:
    """Return how each line of this kind of event begins; for :class:`Event` itself, of any kind."""
    return f'{{"event":"{kind.kind}",'.encode() if kind.kind else b'{"event":"'


def _number(value: float) -> float | str:
    """Round to seven significant digits: more than a loss in fp32 holds, and half the bytes of a repr."""
    if not math.isfinite(value):
        return str(value)
    return float(f"{value:.7g}")
