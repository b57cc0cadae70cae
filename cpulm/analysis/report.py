"""The report on one run, as the terminal and the HTML page show it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cpulm.estimate.learning_law import Expectation

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Curve:
    """Finite values of one measure, in order, downsampled so that all peaks and troughs are kept.

    All four arrays are 1-D and have the same length. ``steps``, ``tokens`` and ``seconds`` (run time without
    interruptions) are the x values.
    """

    steps: Integers
    tokens: Integers
    seconds: Floats
    values: Floats


@dataclass(frozen=True)
class Fact:
    """One line of the summary, in words."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class SettingChange:
    """A setting (dotted key) that differs from the run's preset, or from the default without a preset."""

    key: str
    preset: Any
    value: Any


@dataclass(frozen=True)
class Sample:
    """A sample at a step; ``text`` begins with the prompt."""

    step: int
    tokens: int
    seconds: float
    text: str


@dataclass(frozen=True)
class TimelineEntry:
    """One entry of the timeline. ``seconds`` is run time, ``time`` is wall-clock time since the epoch.

    ``kind`` is ``started``, ``restarted``, ``ended``, ``rolled_back``, ``warning``, ``notice``, ``best`` or
    ``lost`` (a process that ended without a final event).
    """

    step: int
    seconds: float
    kind: str
    text: str
    time: float = 0.0


@dataclass(frozen=True)
class Finding:
    """A conclusion in plain words, with its figures."""

    kind: str
    weight: Literal["good", "note", "warning"]
    text: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """The best loss of a run, the ``expected`` one, and the one after ``more_seconds``, in bits per byte."""

    loss: float
    expected: Expectation
    more_seconds: float
    loss_then: float


@dataclass(frozen=True)
class Figures:
    """The numbers of a run; None if the log does not contain them.

    Losses are in nats per token, times in seconds, ``began`` and ``seen`` since the epoch. ``seconds`` is run
    time, ``wall_seconds`` the time from the first to the last event. ``flops_per_second`` is the rate of the
    training steps, ``peak_flops_per_second`` that of a matrix product in fp32 at the start of the run.
    """

    preset: str | None = None
    version: str | None = None
    device_name: str | None = None
    precision: str | None = None
    precision_reason: str | None = None
    compiled: bool | None = None
    threads: int | None = None
    params_total: int | None = None
    params_non_embedding: int | None = None
    vocab_size: int | None = None
    block_size: int | None = None
    train_tokens: int | None = None
    val_tokens: int | None = None
    tokens_per_step: int | None = None
    flops_per_token: float | None = None
    steps: int = 0
    horizon_steps: int | None = None
    tokens: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    wall_seconds: float | None = None
    began: float | None = None
    seen: float | None = None
    last_loss: float | None = None
    val_loss: float | None = None
    val_bits_per_byte: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    best_bits_per_byte: float | None = None
    best_trained_loss: float | None = None
    best_averaged_loss: float | None = None
    text_lost: float = 0.0
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    peak_flops_per_second: float | None = None
    text_level: float | None = None
    text_slope: float | None = None
    peak_process_bytes: int | None = None
    damaged_lines: int = 0


@dataclass(frozen=True, eq=False)
class Report:
    """The report on one run.

    ``state`` is one of the states of ``cpulm runs``. ``settings`` are all of them, nested. ``curves`` has
    those of these measures that the log contains: ``loss``, ``val_loss``, ``val_loss_trained`` and
    ``val_loss_averaged`` if the weights were averaged, ``val_bits_per_byte``, ``lr``, ``muon_lr``,
    ``grad_norm``, ``teacher_kl``, ``tok_per_s``, ``cpu_percent``, ``process_cpu_percent``, ``cpu_mhz``,
    ``rss_bytes``, ``memory_used_bytes`` and ``temperature_c``. ``layers`` maps a measure (``weight_norm``,
    ``grad_norm``, ``update_ratio``) and a matrix of the model to a curve; empty if none was recorded.
    ``time_parts`` are the seconds of ``training``, ``data``, ``validation``, ``checkpoints`` and the
    ``rest``. ``standing`` is None unless the run has ended.
    """

    path: Path
    name: str
    state: str
    settings: dict[str, Any]
    changes: tuple[SettingChange, ...]
    facts: tuple[Fact, ...]
    figures: Figures
    curves: dict[str, Curve]
    layers: dict[str, dict[str, Curve]]
    samples: tuple[Sample, ...]
    timeline: tuple[TimelineEntry, ...]
    time_parts: dict[str, float]
    findings: tuple[Finding, ...]
    standing: Standing | None = None
