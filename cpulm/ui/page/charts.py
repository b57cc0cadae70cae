"""The curves of a run as Vega-Lite specifications, shared by the page and the image files.

A specification defines the chart; its rows are added later as the data sets ``points``, ``dots``, ``marks``
and ``cursor``:

- ``points``: ``{x, y, series, raw}``; ``raw`` is 1 for the unsmoothed points behind a smoothed line;
- ``dots``: ``{x, y, series}``, points of curves with so few points that each should be visible;
- ``marks``: ``{x, text}``, events of the timeline;
- ``cursor``: ``{x, y, series, first}``, the points at the mouse, in pixels, on the page only.

A layer whose data set is empty must be removed, or its axes have no extent: :func:`with_data`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cpulm.ui.page.palette import SERIES, Colour

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
"""Identifies the language; nothing is loaded from this address."""

Spec = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One chart of curves.

    Attributes:
        curves: the report's curves in it, each with its label.
        unit: of the values; empty if they have none.
        number: the axis's number format, in d3's notation; None for the default.
        smoothed: draw a smoothed line over the single values.
        from_zero: the axis begins at zero.
    """

    name: str
    title: str
    curves: tuple[tuple[str, str], ...]
    unit: str = ""
    number: str | None = None
    smoothed: bool = False
    from_zero: bool = False


CHARTS = (
    Chart(
        "loss", "Loss", (("loss", "training"), ("val_loss", "validation")), "nats per token", smoothed=True
    ),
    Chart("bits_per_byte", "Validation", (("val_bits_per_byte", "validation"),), "bits per byte"),
    Chart(
        "average",
        "Averaged weights",
        (("val_loss_trained", "trained weights"), ("val_loss_averaged", "averaged weights")),
        "nats per token",
    ),
    Chart(
        "teacher",
        "Divergence from the teacher",
        (("teacher_kl", "training"),),
        "nats per token",
        smoothed=True,
    ),
    Chart("lr", "Learning rate", (("lr", "AdamW"), ("muon_lr", "Muon")), number="~g", from_zero=True),
    Chart("grad_norm", "Gradient norm", (("grad_norm", "gradient norm"),), smoothed=True),
    Chart(
        "throughput",
        "Throughput",
        (("tok_per_s", "throughput"),),
        "tokens per second",
        "~s",
        smoothed=True,
        from_zero=True,
    ),
    Chart(
        "cpu",
        "CPU",
        (("cpu_percent", "machine"), ("process_cpu_percent", "this run")),
        "% of the machine",
        smoothed=True,
        from_zero=True,
    ),
    Chart("memory", "Memory", (("rss_bytes", "this run"),), "MiB", from_zero=True),
    Chart("temperature", "Temperature of the CPU", (("temperature_c", "CPU"),), "°C", smoothed=True),
)


def charts_for(text_lost: float) -> tuple[Chart, ...]:
    """The charts; bits per byte are marked if the tokenizer loses a share ``text_lost`` of the text."""
    if not text_lost:
        return CHARTS
    unit = f"bits per byte (not comparable: {text_lost:.1%} of the text is lost)"
    return tuple(replace(chart, unit=unit) if chart.name == "bits_per_byte" else chart for chart in CHARTS)


_LONG_BAR = "datum.share > 0.5"
SCALES = {"rss_bytes": 2.0**-20}
"""Factors from a curve's values to its chart's unit."""


def curves(chart: Chart, series: list[str], colour: Colour, *, legend: bool) -> Spec:
    """The specification of one chart.

    Args:
        series: the names of its curves, in the order of their colours.
        legend: whether Vega draws the legend and the unit. The page shows both above the chart, with the
            values at the mouse.
    """
    x = {"field": "x", "type": "quantitative", "title": "step", "scale": {"nice": False, "zero": False}}
    x["axis"] = {"grid": False, "format": "~s", "tickCount": 6}
    y = {
        "field": "y",
        "type": "quantitative",
        "title": chart.unit if legend and chart.unit else None,
        "scale": {"zero": chart.from_zero},
        "axis": {"tickCount": 5, "minExtent": 38, **_numbers(chart)},
    }
    by_series = colours(series, colour, legend=legend)
    lines = {"x": x, "y": y, "color": by_series}
    marks = {"data": {"name": "marks"}, "encoding": {"x": {"field": "x", "type": "quantitative"}}}
    return {
        "$schema": SCHEMA,
        "height": 210,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "points"},
        "layer": [
            {
                **marks,
                "mark": {"type": "rule", "color": colour("warning"), "opacity": 0.35, "strokeDash": [3, 3]},
            },
            {
                "mark": {"type": "line", "strokeJoin": "round", "clip": True},
                "encoding": {
                    **lines,
                    "detail": {"field": "raw"},
                    "opacity": {"condition": {"test": "datum.raw", "value": 0.35}, "value": 1},
                    "strokeWidth": {"condition": {"test": "datum.raw", "value": 1}, "value": 2},
                },
                "params": [_brush(colour)],
            },
            {
                "data": {"name": "dots"},
                # Not clipped at the edges: the data holds only points within them.
                "mark": {"type": "point", "filled": True, "size": 28, "opacity": 1},
                "encoding": lines,
            },
            _flags(marks, colour),
            *_cursor(by_series, colour),
        ],
    }


def _numbers(chart: Chart) -> Spec:
    if chart.number is None:
        return {}
    # With an SI suffix, zero would be written 0k.
    return {"format": chart.number, "labelExpr": "datum.value === 0 ? '0' : datum.label"}


def with_data(spec: Spec, datasets: dict[str, list[dict[str, Any]]]) -> Spec:
    """Return ``spec`` with its rows, without layers that have no rows."""
    empty = {name for name, rows in datasets.items() if not rows}
    layers = [layer for layer in spec.get("layer", []) if layer.get("data", {}).get("name") not in empty]
    return {**spec, "datasets": datasets, **({"layer": layers} if layers else {})}


def colours(series: list[str], colour: Colour, *, legend: bool) -> Spec:
    """The encoding that gives each of ``series`` its colour."""
    return {
        "field": "series",
        "type": "nominal",
        "scale": {
            "domain": series,
            "range": [colour(f"series-{at % SERIES + 1}") for at in range(len(series))],
        },
        "legend": {"title": None, "orient": "top"} if legend else None,
    }


def _brush(colour: Colour) -> Spec:
    return {
        "name": "brush",
        "select": {
            "type": "interval",
            "encodings": ["x"],
            "translate": False,
            "zoom": False,
            "mark": {"fill": colour("accent"), "fillOpacity": 0.12, "stroke": colour("accent")},
        },
    }


def _flags(marks: Spec, colour: Colour) -> Spec:
    """A small triangle at the top of each mark's line: a line alone is hard to point at."""
    return {
        "data": marks["data"],
        "mark": {
            "type": "point",
            "shape": "triangle-down",
            "filled": True,
            "size": 70,
            "opacity": 1,
            "color": colour("warning"),
        },
        "encoding": {
            **marks["encoding"],
            "y": {"value": 2},
            "tooltip": {"field": "text", "type": "nominal"},
        },
    }


def _cursor(by_series: Spec, colour: Colour) -> list[Spec]:
    """The cursor's layers, in pixels, so that the cursor never moves an axis."""
    x = {"field": "x", "type": "quantitative", "scale": None}
    return [
        {
            "data": {"name": "cursor"},
            "transform": [{"filter": "datum.first"}],
            "mark": {"type": "rule", "color": colour("muted"), "opacity": 0.6, "clip": True},
            "encoding": {"x": x},
        },
        {
            "data": {"name": "cursor"},
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1, "clip": True},
            "encoding": {"x": x, "y": {**x, "field": "y"}, "color": by_series},
        },
    ]


def time_parts(bars: int, colour: Colour) -> Spec:
    """The parts of a run's time as ``bars`` bars; rows ``{part, seconds, share, label}``."""
    return {
        "$schema": SCHEMA,
        "height": 26 * bars,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "points"},
        "encoding": {"y": {"field": "part", "type": "nominal", "sort": None, "title": None}},
        "layer": [
            {
                "mark": {"type": "bar", "cornerRadiusEnd": 3, "height": 16, "color": colour("series-1")},
                "encoding": {
                    "x": {
                        "field": "share",
                        "type": "quantitative",
                        "title": None,
                        "axis": {"format": "%", "tickCount": 5},
                        "scale": {"domain": [0, 1]},
                    }
                },
            },
            {
                # Inside a long bar, because a narrow chart has no room beside it.
                "mark": {
                    "type": "text",
                    "align": {"expr": f"{_LONG_BAR} ? 'right' : 'left'"},
                    "dx": {"expr": f"{_LONG_BAR} ? -8 : 6"},
                    "fill": {"expr": f"{_LONG_BAR} ? '{colour('card')}' : '{colour('ink')}'"},
                },
                "encoding": {
                    "x": {"field": "share", "type": "quantitative"},
                    "text": {"field": "label", "type": "nominal"},
                },
            },
        ],
    }
