"""Builds the report on a run from its folder."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cpulm.analysis.changes import changes_from_preset
from cpulm.analysis.downsample import curve
from cpulm.analysis.findings import findings
from cpulm.analysis.report import Curve, Figures, Floats, Report, Sample
from cpulm.analysis.run_summary import facts
from cpulm.analysis.standing import standing
from cpulm.analysis.timeline import build_timeline
from cpulm.errors import DataError
from cpulm.events import CheckpointSaved, LayerStats, RolledBack, SampleMade, Validated
from cpulm.run_dir import RunDir
from cpulm.runlog.run_log import RunLog, read_run_log
from cpulm.runs import supervisor_state
from cpulm.runs.status import is_run, status_of
from cpulm.runs.stored_settings import read_settings

POINTS = 2000
_MOST_SAMPLES = 200
_MOST_LAYER_POINTS = 400
"""A model has dozens of matrices, each with three measures."""
_FROM_STEPS = {
    "loss": "loss",
    "teacher_kl": "teacher_divergence",
    "lr": "lr",
    "muon_lr": "muon_lr",
    "grad_norm": "grad_norm",
}
_FROM_MACHINE = {
    "cpu_percent": "cpu_percent",
    "process_cpu_percent": "process_cpu_percent",
    "cpu_mhz": "cpu_mhz",
    "rss_bytes": "process_bytes",
    "memory_used_bytes": "memory_used_bytes",
    "temperature_c": "cpu_temperature",
}
"""The report's names of the curves, and the event fields they come from."""
_FROM_VALIDATIONS = {
    "val_loss": "loss",
    "val_loss_trained": "trained_loss",
    "val_loss_averaged": "averaged_loss",
    "val_bits_per_byte": "bits_per_byte",
}
_FROM_STARTED = (
    "version",
    "device_name",
    "precision",
    "precision_reason",
    "compiled",
    "threads",
    "params_total",
    "params_non_embedding",
    "vocab_size",
    "block_size",
    "train_tokens",
    "val_tokens",
    "tokens_per_step",
    "flops_per_token",
    "peak_flops_per_second",
    "text_level",
    "text_slope",
)


def read_report(run: Path, points: int = POINTS) -> Report:
    """Build the report on a run that is running, has ended or has crashed. Damaged lines are skipped.

    Args:
        run: a run's folder, or any file directly in it.
        points: the most points in each curve.

    Raises:
        DataError: if it is not a run, or the run has not begun.
    """
    found = RunDir(run if run.is_dir() else run.parent)
    if not run.exists():
        raise DataError(f"{run} does not exist", "give a run's folder, such as runs/tiny-1")
    if not is_run(found):
        raise DataError(f"{run} is not a cpulm run", "a run's folder holds settings.yaml and metrics.jsonl")
    if not found.metrics.is_file() or not found.metrics.stat().st_size:
        raise DataError(
            f"{found.path} has no metrics yet", "the run has not begun, or its metrics.jsonl is lost"
        )
    log = read_run_log(found.metrics)
    settings, state = read_settings(found), status_of(found)
    figures = _figures(log)
    parts, beside = _time_parts(log, figures.seconds), standing(log, figures)
    return Report(
        path=found.path,
        name=found.name,
        state=state.state,
        settings=settings,
        changes=changes_from_preset(settings),
        facts=facts(state, figures, log),
        figures=figures,
        curves=_curves(log, points),
        layers=_layers(log, min(points, _MOST_LAYER_POINTS)),
        samples=_samples(log),
        timeline=build_timeline(log, supervisor_state.read(found)),
        time_parts=parts,
        findings=findings(log, settings, state, figures, parts, beside),
        standing=beside,
    )


def _figures(log: RunLog) -> Figures:
    started, steps = log.started, log.steps
    known: dict[str, Any] = {}
    if started is not None:
        known = {name: getattr(started, name) for name in _FROM_STARTED}
        known["preset"] = None if started.preset == "none" else started.preset
        known["horizon_steps"] = started.steps
    if len(steps["step"]):
        known.update(
            steps=int(steps["step"][-1]),
            tokens=int(steps["tokens"][-1]),
            epochs=float(np.nan_to_num(steps["epoch"][-1])),
            seconds=float(steps["elapsed_seconds"][-1]),
            last_loss=_finite(steps["loss"][-1]),
        )
        if started is not None:
            pace = _pace(steps["step_seconds"], started.tokens_per_step)
            known["tokens_per_second"] = pace
            known["flops_per_second"] = None if pace is None else pace * started.flops_per_token
    times = [
        float(column["time"][at]) for column in (steps, log.machine) for at in (0, -1) if len(column["time"])
    ]
    times += [event.time for _, event in log.events]
    known.update(began=min(times), seen=max(times), wall_seconds=max(times) - min(times))
    if len(log.machine["process_bytes"]):
        known["peak_process_bytes"] = int(log.machine["process_bytes"].max())
    return Figures(**known, **_validation_figures(log), damaged_lines=log.damaged_lines)


def _validation_figures(log: RunLog) -> dict[str, Any]:
    validations = log.validations
    if not validations:
        return {}
    best, last = min(validations, key=lambda v: v.loss), validations[-1]
    return {
        "val_loss": last.loss,
        "val_bits_per_byte": last.bits_per_byte,
        "best_loss": best.loss,
        "best_step": best.step,
        "best_bits_per_byte": best.bits_per_byte,
        "best_trained_loss": best.trained_loss,
        "best_averaged_loss": best.averaged_loss,
        "text_lost": best.text_lost,
    }


def _pace(step_seconds: Floats, tokens_per_step: int) -> float | None:
    known = step_seconds[np.isfinite(step_seconds)]
    return tokens_per_step * len(known) / float(known.sum()) if known.sum() > 0 else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _curves(log: RunLog, points: int) -> dict[str, Curve]:
    steps = log.steps
    place = steps["step"], steps["tokens"], steps["elapsed_seconds"]
    found = {name: curve(*place, steps[field], points) for name, field in _FROM_STEPS.items()}
    found["tok_per_s"] = _throughput(log, points)
    at = log.places(log.machine_at)
    for name, field in _FROM_MACHINE.items():
        found[name] = curve(at[:, 0], at[:, 1], at[:, 2], log.machine[field], points)
    validations = [(one.at, one.event) for one in log.events if isinstance(one.event, Validated)]
    at = log.places(np.array([at for at, _ in validations], dtype=np.int64))
    for name, field in _FROM_VALIDATIONS.items():
        values = np.array([getattr(event, field) for _, event in validations], dtype=np.float64)  # None: nan
        found[name] = curve(at[:, 0], at[:, 1], at[:, 2], values, points)
    return {name: one for name, one in found.items() if one is not None}


def _throughput(log: RunLog, points: int) -> Curve | None:
    """Return tokens per second, averaged over groups of steps of equal size, at most ``points`` of them.

    Single steps are not shown: other work of the system can slow down any one of them.
    """
    steps = log.steps
    if log.started is None or not len(steps["step"]):
        return None
    together = max(1, -(-len(steps["step"]) // points))
    begins = np.arange(0, len(steps["step"]), together)
    lasts = np.minimum(begins + together, len(steps["step"])) - 1
    seconds = np.add.reduceat(np.nan_to_num(steps["step_seconds"]), begins)
    with np.errstate(divide="ignore"):
        pace = log.started.tokens_per_step * (lasts - begins + 1) / seconds
    number, tokens, elapsed = (steps[name][lasts] for name in ("step", "tokens", "elapsed_seconds"))
    return curve(number, tokens, elapsed, pace, points)


def _layers(log: RunLog, points: int) -> dict[str, dict[str, Curve]]:
    """Return measure -> matrix -> curve. After a resumption by another version the matrices may differ."""
    events = [(one.at, one.event) for one in log.events if isinstance(one.event, LayerStats)]
    if not events:
        return {}
    at = log.places(np.array([at for at, _ in events], dtype=np.int64))
    names = dict.fromkeys(name for _, event in events for name in event.names)
    found: dict[str, dict[str, Curve]] = {}
    for measure, field in (
        ("weight_norm", "weight_norms"),
        ("grad_norm", "grad_norms"),
        ("update_ratio", "update_ratios"),
    ):
        table = {name: np.full(len(events), np.nan) for name in names}
        for row, (_, event) in enumerate(events):
            for name, value in zip(event.names, getattr(event, field), strict=False):
                table[name][row] = value
        curves = {name: curve(at[:, 0], at[:, 1], at[:, 2], values, points) for name, values in table.items()}
        found[measure] = {name: one for name, one in curves.items() if one is not None}
    return found


def _samples(log: RunLog) -> tuple[Sample, ...]:
    """Return the samples; if there are too many, evenly spaced ones, including the first and the last."""
    events = [(one.at, one.event) for one in log.events if isinstance(one.event, SampleMade)]
    if len(events) > _MOST_SAMPLES:
        chosen = np.linspace(0, len(events) - 1, _MOST_SAMPLES).round().astype(int)
        events = [events[index] for index in chosen]
    samples = []
    for at, event in events:
        place = log.place(at)
        samples.append(Sample(event.step, place.tokens, place.seconds, event.prompt + event.text))
    return tuple(samples)


def _time_parts(log: RunLog, seconds: float) -> dict[str, float]:
    """Split the run time into parts; ``undone`` is the training that rollbacks have undone."""
    steps = log.steps
    data = float(np.nansum(steps["data_seconds"]))
    parts = {
        "training": max(0.0, float(np.nansum(steps["step_seconds"])) - data),
        "data": data,
        "validation": _sum(event.seconds for _, event in log.events if isinstance(event, Validated)),
        "checkpoints": _sum(event.seconds for _, event in log.events if isinstance(event, CheckpointSaved)),
    }
    undone = _undone_seconds(log)
    if undone:
        parts["undone"] = undone
    parts["rest"] = max(0.0, seconds - sum(parts.values()))
    return parts


def _undone_seconds(log: RunLog) -> float:
    total = 0.0
    for at, event in log.events:
        if isinstance(event, RolledBack):
            index = int(np.searchsorted(log.steps["step"], event.to_step, side="right")) - 1
            before = float(log.steps["elapsed_seconds"][index]) if index >= 0 else 0.0
            total += max(0.0, log.place(at).seconds - before)
    return total


def _sum(values: Iterable[float]) -> float:
    return float(sum(values))
