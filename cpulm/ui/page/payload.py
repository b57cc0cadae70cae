"""A report as the plain values in the page: rounded, and small enough for an email."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cpulm.ui.page.charts import CHARTS, SCALES, Chart
from cpulm.ui.terminal_text import harmless
from cpulm.ui.words import TIME_PARTS, typed_value
from cpulm.units import format_duration

if TYPE_CHECKING:
    from cpulm.analysis.report import Curve, Report, TimelineEntry

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

DRAWN = {name: chart for chart in CHARTS for name, _ in chart.curves}
"""The curves that the page draws, with their charts."""

_DIGITS = 5
_SPANS = 120
"""Columns of the chart of all layers over time: each shows the largest value of its span of steps."""
_MARKED = ("restarted", "generation", "rolled_back", "lost", "warning")
"""Kinds of events marked in the curves; the table also has the others."""
_MOST_MARKS = 60
_MOST_SAMPLES = 120
_MOST_ENTRIES = 400
_SAMPLE_CHARACTERS = 2000
_MOST_POINTS = 2000
"""Of one curve; more than three runs share the total for a page."""
_POINTS_OF_ALL = 5500
_RUNS_WITH_LAYERS = 8
_SMOOTHED_FROM = 40
"""A curve of fewer points needs no smoothed line."""
DOTS = 40
"""A curve of at most this many points shows each of them."""
_WINDOW = 50
"""A smoothed point is the mean over 1/50 of the curve's length."""


def run(report: Report, runs: int = 1, name: str = "") -> dict[str, Any]:
    """Everything that the page shows about one run.

    Args:
        runs: how many runs share the page: the more there are, the less it shows of each.
        name: by default the report's own.
    """
    points = min(_MOST_POINTS, max(50, _POINTS_OF_ALL // runs))
    layered = report.layers if runs <= _RUNS_WITH_LAYERS else {}
    return {
        "name": printable(name or report.name),
        "state": report.state,
        "facts": [
            {"label": fact.label, "value": printable(fact.value), "note": printable(fact.note)}
            for fact in report.facts
            if fact.label != "preset"  # it is shown below the title, and the state beside it
            and (fact.label != "state" or fact.note)
        ],
        "findings": [{"weight": f.weight, "text": printable(f.text)} for f in report.findings],
        "flops_per_token": report.figures.flops_per_token,
        "curves": {
            name: curve(name, values, points) for name, values in report.curves.items() if name in DRAWN
        },
        "layers": {name: layers(parts) for name, parts in layered.items() if parts},
        "samples": [
            {
                "step": sample.step,
                "tokens": sample.tokens,
                "seconds": number(sample.seconds),
                "text": harmless(sample.text, keep_lines=True)[:_SAMPLE_CHARACTERS],
            }
            for sample in spread(report.samples, max(3, _MOST_SAMPLES // runs))
        ],
        "timeline": [_entry(item) for item in report.timeline[-max(20, _MOST_ENTRIES // runs) :]],
        "marks": _marks(report) if runs == 1 else [],  # with several runs they would cover the curves
        "time_parts": list(time_rows(report.time_parts)),
        "changes": {change.key: plain(change.key, change.preset) for change in report.changes},
        "settings": [[key, plain(key, value)] for key, value in flat(report.settings)],
    }


def curve(name: str, values: Curve, most: int = _MOST_POINTS) -> dict[str, Any]:
    """The arrays of one curve, in its chart's unit; ``smooth`` if its chart has a smoothed line.

    Args:
        most: the maximum number of points; peaks and troughs are kept.
    """
    chart = DRAWN[name]
    scaled = values.values * SCALES.get(name, 1.0)
    kept = extremes(scaled, most)
    arrays = {
        "steps": values.steps[kept].tolist(),
        "tokens": values.tokens[kept].tolist(),
        "seconds": [number(item) for item in values.seconds[kept].tolist()],
        "values": [number(item) for item in scaled[kept].tolist()],
    }
    if is_smoothed(chart, name, len(scaled)):
        arrays["smooth"] = [number(item) for item in smooth(scaled)[kept].tolist()]
    return arrays


def extremes(values: Floats, most: int) -> Integers:
    """Indices of at most ``most`` of ``values``, in order: the minimum and maximum of each span."""
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(1, len(values) - 1, (most - 2) // 2 + 1).astype(np.int64)
    kept = {0, len(values) - 1}
    for begin, end in itertools.pairwise(edges.tolist()):
        span = values[begin:end]
        kept |= {begin + int(span.argmin()), begin + int(span.argmax())}
    return np.array(sorted(kept), dtype=np.int64)


def is_smoothed(chart: Chart, name: str, points: int) -> bool:
    """Whether a curve of so many points gets a smoothed line; a validation is already a mean."""
    return chart.smoothed and not name.startswith("val_") and points >= _SMOOTHED_FROM


def smooth(values: Floats) -> Floats:
    """The mean over a window that is centred on each point and narrower at both ends; as long as ``values``.

    For a downsampled curve, which keeps the minimum and maximum of each span, it is the middle between them.
    """
    half = max(1, len(values) // _WINDOW // 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(half, np.minimum(at, len(values) - 1 - at))
    low, high = at - reach, at + reach + 1
    means: Floats = (sums[high] - sums[low]) / (high - low)
    return means


def rows(report: Report, chart: Chart, label: str = "") -> dict[str, list[dict[str, Any]]]:
    """The data sets ``points`` and ``dots`` over steps, as a picture file needs them.

    Args:
        label: the name of the run's curves; by default the chart's label of each.
    """
    points: list[dict[str, Any]] = []
    dots: list[dict[str, Any]] = []
    for name, series in chart.curves:
        if (values := report.curves.get(name)) is None:
            continue
        arrays = curve(name, values)
        kept = {"series": label or series}
        line = [{"x": x, "y": y, **kept} for x, y in zip(arrays["steps"], arrays["values"], strict=True)]
        if "smooth" in arrays:
            points += [{**row, "raw": 1} for row in line]
            line = [{**row, "y": y} for row, y in zip(line, arrays["smooth"], strict=True)]
        points += [{**row, "raw": 0} for row in line]
        if len(line) <= DOTS:
            dots += line
    return {"points": points, "dots": dots}


def marks_over_steps(report: Report) -> list[dict[str, Any]]:
    """The rows of the data set ``marks``."""
    return [{"x": mark["steps"], "text": mark["text"]} for mark in _marks(report)]


def layers(parts: Mapping[str, Curve]) -> dict[str, Any]:
    """All parts of one measure as a grid: the largest value of each span of steps.

    Returns:
        ``parts``, their names; ``steps``, where each span ends; ``values``, a list per part.
    """
    last = max((int(part.steps[-1]) for part in parts.values() if len(part.steps)), default=0)
    first = min((int(part.steps[0]) for part in parts.values() if len(part.steps)), default=0)
    most = max(len(part.steps) for part in parts.values())
    edges = np.linspace(first - 0.5, last + 0.5, min(_SPANS, max(most, 1)) + 1)
    grid = []
    for part in parts.values():
        span = np.clip(np.searchsorted(edges, part.steps, side="left") - 1, 0, len(edges) - 2)
        largest = np.full(len(edges) - 1, -np.inf)
        np.maximum.at(largest, span, part.values)
        grid.append([number(item) for item in largest.tolist()])
    return {"parts": list(parts), "edges": [round(edge) for edge in edges.tolist()], "values": grid}


def time_rows(parts: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """The parts of the time, the largest first."""
    whole = sum(parts.values())
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        if whole > 0:
            share = seconds / whole
            label = f"{format_duration(seconds)}  ({share:.1%})"
            words = TIME_PARTS.get(name, name)
            yield {"part": words, "seconds": number(seconds), "share": number(share), "label": label}


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``("train.lr", 0.001)`` and so on, in the settings' own order."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def number(value: float) -> float | None:
    """Five significant digits, which is finer than a pixel; None if it is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def plain(key: str, value: Any) -> Any:
    """The value of the setting ``key`` as a reader would type it."""
    value = typed_value(key, value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return printable(", ".join(str(item) for item in value))
    return printable(str(value))


def printable(text: str) -> str:
    """``text`` in one line, without characters that a terminal or page could interpret."""
    return harmless(text)


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of ``items``, evenly from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(at * (len(items) - 1) / (most - 1))] for at in range(most)]


def _entry(item: TimelineEntry) -> dict[str, Any]:
    return {
        "step": item.step,
        "seconds": number(item.seconds),
        "kind": item.kind.replace("_", " "),
        "text": printable(item.text),
        "clock": time.strftime("%a %d %b %H:%M:%S", time.localtime(item.time)) if item.time else "",
    }


def _marks(report: Report) -> list[dict[str, Any]]:
    """The marks in the curves, with their position on each x axis."""
    base = report.curves.get("loss")
    marks = []
    for item in [item for item in report.timeline if item.kind in _MARKED][-_MOST_MARKS:]:
        tokens = 0.0
        if base is not None and len(base.steps):
            tokens = float(np.interp(item.step, base.steps, base.tokens))
        text = f"{item.kind.replace('_', ' ')} at step {item.step:,}: {printable(item.text)}"
        marks.append(
            {"steps": item.step, "tokens": round(tokens), "seconds": number(item.seconds), "text": text}
        )
    return marks
