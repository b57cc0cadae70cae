"""Defines the events of a run, frozen dataclasses, and converts them to JSON and back.

A run emits events; listeners (the run log, the dashboard, plain lines, JSON lines) receive them. An event
contains only plain values and does not depend on its readers. Every number in an event from a file is checked
against the range of its type.
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
    """Any float: the loss of a diverging run may be NaN or infinite, which are strings in JSON."""
else:
    Loss = float | Literal["nan", "inf", "-inf"]
_LOSSES = {
    *("loss", "grad_norm", "perplexity", "bits_per_byte", "best_loss", "best_bits_per_byte"),
    *("teacher_divergence", "teacher_loss", "trained_loss", "averaged_loss"),
}
"""The fields of type :data:`Loss`, of all events."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events. ``time`` is in seconds since the epoch."""

    kind: ClassVar[str] = ""
    time: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A run, new or resumed, is about to begin its first step.

    ``steps`` is the horizon in optimizer updates; None if the horizon is ``max_time_seconds``, which
    ``most_steps`` may end earlier. ``notes`` are the choices for this machine and their reasons, in words,
    ``precision_reason`` is that of ``precision``. ``peak_flops_per_second`` is the rate of a matrix product
    in fp32 at the start of the run. ``generation`` is the one that begins or continues, of ``generations``.
    ``text_level`` and ``text_slope`` say how predictable the text is (:mod:`cpulm.data.byte_ngrams`); None if
    it is too short. ``threads`` are those of each of the run's ``processes``. ``writes_samples`` is whether
    each validation makes a sample. Fields with a default are missing in logs of earlier versions.
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
    generation: Count = 1
    generations: Count = 1
    text_level: Number | None = None
    text_slope: Number | None = None
    processes: Count = 1
    writes_samples: bool = True
    most_steps: Count | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationStarted(Event):
    """After update ``step`` a new model begins, with new weights: ``generation`` of ``generations``.

    It learns from the model that was the best one of the run so far, of step ``teacher_step`` with the
    validation loss ``teacher_loss``; both are None if the run had not been validated.
    """

    kind: ClassVar[str] = "generation"
    step: Count
    generation: Count
    generations: Count
    seed: Count
    teacher_step: Count | None
    teacher_loss: Loss | None


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """One optimizer update. ``loss`` is in nats per token, the mean over the step's tokens.

    ``step`` counts finished updates, ``tokens`` trained tokens. ``elapsed_seconds`` is the run time of the
    whole run without interruptions. ``step_seconds`` includes ``data_seconds``, the time to load the batch.
    ``lr`` is the learning rate of AdamW, ``muon_lr`` that of Muon; None without Muon, or in the log of an
    earlier version. ``teacher_divergence`` is how far the model's distribution is from its teacher's, in nats
    per token; None without a teacher. ``epoch`` is that of the ``generation``.
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
    teacher_divergence: Loss | None = None
    generation: Count = 1


@dataclass(frozen=True, kw_only=True)
class LayerStats(Event):
    """Statistics of each matrix of the model in update ``step``, measured every ``log.layer_stats_every``.

    All four tuples have one entry per matrix. ``names`` are as in the model, such as ``blocks.0.attn.qkv``.
    Norms are Frobenius norms: ``weight_norms`` after the update, ``grad_norms`` before clipping.
    ``update_ratios`` are the norm of the update over the norm of the weights.
    """

    kind: ClassVar[str] = "layer_stats"
    step: Count
    names: tuple[str, ...]
    weight_norms: tuple[Number, ...]
    grad_norms: tuple[Number, ...]
    update_ratios: tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class Validated(Event):
    """A validation. ``best`` is whether its loss is the lowest of the run so far; ``whole`` is False if it
    covered only some batches of the validation split.

    ``text_lost`` is the share of the validation text, in bytes, that the tokenizer loses: above 0, bits per
    byte are not comparable with those of other tokenizers. ``trained_loss`` and ``averaged_loss`` are None if
    no average is kept; ``loss`` is the lower one, the other has the difference on a part of the tokens.
    """

    kind: ClassVar[str] = "validated"
    step: Count
    loss: Loss
    perplexity: Loss
    bits_per_byte: Loss
    tokens: Count
    seconds: Number
    whole: bool
    best: bool
    text_lost: Number = 0.0
    trained_loss: Loss | None = None
    averaged_loss: Loss | None = None
    generation: Count = 1

    @property
    def average_is_better(self) -> bool:
        """Whether ``loss`` is that of the averaged weights."""
        return self.averaged_loss is not None and self.averaged_loss == self.loss != self.trained_loss


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint was written. ``role`` is ``latest`` or ``best``; the best one is also the latest.

    ``saves`` is its number among the run's checkpoints; several may have the same step.
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
    """The run was rolled back from ``step`` to its checkpoint of ``to_step``; the steps between are undone.

    ``reason`` is the problem in words. ``skipped_batches`` are the loader's indices of the micro-batches that
    are skipped from now on. ``count`` is the number of rollbacks since the last new best validation loss,
    ``limit`` the most that are allowed.
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
    """Text that the current model generated."""

    kind: ClassVar[str] = "sample"
    step: Count
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class MachineSampled(Event):
    """The machine's state. Percentages are of the whole machine; None if a value cannot be read."""

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
    """The progress of a stage outside the training steps; not written to the run log.

    ``done`` and ``total`` are in ``unit``; ``total`` is None if unknown. ``finished`` marks the last event of
    the stage.
    """

    kind: ClassVar[str] = "progress"
    stage: str
    done: Number
    total: Number | None
    unit: str
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """A message to the user; ``level`` is ``info`` or ``warning``."""

    kind: ClassVar[str] = "notice"
    level: str
    message: str


EndReason = Literal[
    "horizon", "target_loss", "patience", "stopped", "aborted", "diverged", "no_room", "failed"
]
"""Why a run ended; ``no_room``: no checkpoint could be written, or memory ran out."""

COMPLETE: tuple[EndReason, ...] = ("horizon", "target_loss", "patience")
"""The reasons of complete runs, which have no steps left."""

END_REASONS: dict[EndReason, str] = {
    "horizon": "finished",
    "target_loss": "reached its target loss",
    "patience": "ended early without improvement",
    "stopped": "stopped with everything saved",
    "aborted": "aborted by a second Ctrl-C",
    "diverged": "diverged",
    "no_room": "ran out of disk space or memory",
    "failed": "failed",
}
"""How a run ended, by the reason, in the words of all reports and screens."""


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The last event of a run.

    ``estimated_seconds`` is the estimate at its start: the requested time, or the time of all training steps.
    ``time_over_estimate`` is the time of the steps since the last start relative to their part of that
    estimate; None if the run did not reach a horizon in steps. ``tokens_per_second`` and
    ``flops_per_second`` are those of the training steps since the last start. ``share_of_peak`` is relative
    to a matrix product in fp32, and may be above 1 if products are in int8 or bf16. ``text_lost`` is as in
    :class:`Validated`. ``others_cpu`` is the share of the machine's processors that other programs used
    meanwhile.
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
    text_lost: Number = 0.0
    others_cpu: Number | None = None


Listener = Callable[[Event], None]

KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        RunStarted,
        GenerationStarted,
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


_LEFT_OUT = {"teacher_divergence", "generation"}
"""Fields of every step that are not written if they have their defaults, as in runs without generations."""


def to_json(event: Event) -> str:
    """Return one line of JSON. Non-finite floats become the strings ``"nan"``, ``"inf"``, ``"-inf"``."""
    record: dict[str, Any] = {"event": event.kind}
    for spec in dataclasses.fields(event):
        value = getattr(event, spec.name)
        if spec.name in _LEFT_OUT and value == spec.default:
            continue
        if isinstance(value, float):
            value = round(value, 3) if spec.name == "time" else _number(value)
        elif isinstance(value, tuple):
            value = [_number(item) if isinstance(item, float) else item for item in value]
        record[spec.name] = value
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class _Head(msgspec.Struct):
    """The fields of every event. ``time`` is required here: its default is for events created now."""

    event: str
    time: Moment


_HEAD = msgspec.json.Decoder(_Head)
_DECODERS = {kind: msgspec.json.Decoder(cls) for kind, cls in KINDS.items()}


def from_json(line: str | bytes) -> Event:
    """Return the event in one line of JSON; keys that this version does not know are ignored.

    Raises:
        ValueError: if the line is not an event, or one of its values is invalid.
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
    """Return the start of every line of this kind of event; of any event for :class:`Event` itself."""
    return f'{{"event":"{kind.kind}",'.encode() if kind.kind else b'{"event":"'


def _number(value: float) -> float | str:
    """Round to seven significant digits: more than a loss in fp32 holds, and half the bytes of a repr."""
    if not math.isfinite(value):
        return str(value)
    return float(f"{value:.7g}")
