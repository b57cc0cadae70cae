"""Findings about a run: conclusions in plain words, each with its figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from cpulm.analysis.learning import learning_findings
from cpulm.analysis.report import Figures, Finding, Standing
from cpulm.analysis.slowdown import slowdown
from cpulm.analysis.standing import standing_findings
from cpulm.estimate.repeated_text import MOST_PASSES
from cpulm.events import CheckpointSaved
from cpulm.runlog.run_log import RunLog
from cpulm.runs.status import RunStatus

_ORDER = ("warning", "note", "good")
_DATA_PART, _VALIDATION_PART, _CHECKPOINT_PART, _UNDONE_PART = 0.05, 0.15, 0.03, 0.05
_LEAST_SECONDS = 60.0
"""Shorter runs get no findings about time."""


def findings(
    log: RunLog,
    settings: dict[str, Any],
    status: RunStatus,
    figures: Figures,
    time_parts: dict[str, float],
    beside: Standing | None,
) -> tuple[Finding, ...]:
    """Return all findings: warnings, then notes, then good ones."""
    found = [*_end(log, status, figures), *learning_findings(*_newest(log, figures), settings)]
    slow = slowdown(log)
    if slow is not None:
        found.append(slow)
    found += [*_repetition(figures), *standing_findings(beside, figures.seconds), *_time(time_parts, figures)]
    return tuple(sorted(found, key=lambda finding: _ORDER.index(finding.weight)))


def _newest(log: RunLog, figures: Figures) -> tuple[RunLog, Figures]:
    """The log and the figures of the newest generation: its losses do not continue those before it."""
    newest = log.newest_generation()
    if newest is log or not len(newest.steps["step"]):
        return log, figures
    first, last = (float(newest.steps["elapsed_seconds"][at]) for at in (0, -1))
    seconds = last - first + float(np.nan_to_num(newest.steps["step_seconds"][0]))
    best = min((event.loss for event in newest.validations), default=None)
    return newest, replace(figures, tokens=int(newest.steps["tokens"][-1]), seconds=seconds, best_loss=best)


def _end(log: RunLog, status: RunStatus, figures: Figures) -> Iterator[Finding]:
    saved = [event.step for _, event in log.events if isinstance(event, CheckpointSaved)]
    last = float(saved[-1]) if saved else 0.0
    if status.state == "crashed":
        lost = max(0.0, figures.steps - last)
        yield Finding(
            "crashed",
            "warning",
            f"The run's process ended without a final event at step {figures.steps:,}. The last checkpoint "
            f"is of step {last:,.0f}: `cpulm resume` continues from there.",
            {"step": float(figures.steps), "checkpoint_step": last, "lost_steps": lost},
        )
    elif status.state == "diverged":
        step = float(log.finished.step if log.finished is not None else figures.steps)
        yield Finding(
            "diverged",
            "warning",
            f"Training diverged at step {step:,.0f}. Lower train.lr and train.muon_lr, or lengthen "
            "train.warmup_steps.",
            {"step": step},
        )


def _repetition(figures: Figures) -> Iterator[Finding]:
    if not figures.train_tokens or not figures.epochs:
        return
    text = f"The training text was seen {figures.epochs:.1f} times"
    numbers = {"epochs": figures.epochs, "train_tokens": float(figures.train_tokens)}
    if figures.epochs > MOST_PASSES:
        yield Finding(
            "repeated_data",
            "note",
            f"{text}: beyond {MOST_PASSES:.0f} times it teaches less and less. More text would help "
            "more than more time.",
            numbers,
        )
    elif figures.epochs > 1:
        yield Finding("data_seen", "good", f"{text}: so few repeats are nearly as good as new text.", numbers)
    else:
        part = f"{figures.epochs:.0%}" if figures.epochs >= 0.01 else f"{figures.epochs:.2%}"
        yield Finding("data_seen", "good", f"{part} of the training text was seen, each part once.", numbers)


def _time(parts: dict[str, float], figures: Figures) -> Iterator[Finding]:
    """Report time that could be spent on training."""
    whole = sum(parts.values())
    if whole < _LEAST_SECONDS or figures.steps < 1:
        return
    for part, limit, what, advice in (
        ("data", _DATA_PART, "Making batches", "The disk is slow, or other programs use it."),
        (
            "validation",
            _VALIDATION_PART,
            "Validation",
            "A larger eval.every, or eval.batches, reduces it.",
        ),
        ("checkpoints", _CHECKPOINT_PART, "Saving checkpoints", "A longer --checkpoint-every reduces it."),
        ("undone", _UNDONE_PART, "Training undone by rollbacks", "More frequent checkpoints reduce it."),
    ):
        seconds = parts.get(part, 0.0)
        if seconds > limit * whole:
            yield Finding(
                f"{part}_time",
                "note",
                f"{what} took {seconds / whole:.0%} of the time. {advice}",
                {"seconds": seconds, "share": seconds / whole},
            )
