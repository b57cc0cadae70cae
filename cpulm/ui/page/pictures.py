"""The same charts as PNG files, for a slide or a paper, drawn without a browser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpulm.atomic import replacing
from cpulm.errors import SettingsError
from cpulm.ui.page import charts, inspection_charts, inspection_rows, palette, payload
from cpulm.ui.page.page import require_vega

if TYPE_CHECKING:
    from cpulm.analysis.report import Report

_WIDTH = 760
_SCALE = 2.0
"""Pixels per unit: sharp on high-resolution screens and on paper."""


def write_pictures(
    folder: Path, reports: Sequence[Report], look: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write every chart that has data, over steps and on white, to ``folder``, which is created.

    Returns:
        the files, in the page's order.

    Raises:
        SettingsError: if the library that draws is not installed, or the folder cannot be written.
        ResourceError: if the disk is full.
    """
    vega = require_vega()
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, spec in pictures(reports, look):
            image = vega.vegalite_to_png(spec, scale=_SCALE)
            with replacing(folder / f"{name}.png") as file:
                file.write(image)
            written.append(folder / f"{name}.png")
    except OSError as error:
        raise SettingsError(f"cannot write {folder}: {error.strerror}", "choose another folder") from error
    return written


def pictures(
    reports: Sequence[Report], look: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and complete specification of each chart."""
    colour = palette.on_paper
    for chart in charts.charts_for(max(report.figures.text_lost for report in reports)):
        yield from _of_chart(chart, reports)
    if len(reports) == 1:
        report = reports[0]
        rows = list(payload.time_rows(report.time_parts))
        if rows:
            yield (
                "time",
                _whole(charts.time_parts(len(rows), colour), "Where the time went", {"points": rows}),
            )
        for measure, parts in report.layers.items():
            title = f"{measure.replace('_', ' ')} by layer"
            yield (
                f"layers_{measure}",
                _whole(inspection_charts.layers(len(parts), colour), title, {"points": _layer_rows(parts)}),
            )
    if look is not None:
        yield from _of_look(look)


def _of_chart(chart: charts.Chart, reports: Sequence[Report]) -> Iterator[tuple[str, dict[str, Any]]]:
    colour = palette.on_paper
    curves = [(name, words) for name, words in chart.curves if any(name in r.curves for r in reports)]
    if not curves:
        return
    if len(reports) == 1:
        series = [words for _, words in curves]
        data = {**payload.rows(reports[0], chart), "marks": payload.marks_over_steps(reports[0])}
        yield chart.name, _whole(charts.curves(chart, series, colour, legend=True), chart.title, data)
        return
    for name, words in curves:
        one = replace(chart, curves=((name, words),))
        names = [payload.printable(report.name) for report in reports if name in report.curves]
        each = [payload.rows(report, one, payload.printable(report.name)) for report in reports]
        points = [row for data in each for row in data["points"] if not row["raw"]]
        data = {"points": points, "dots": [row for data in each for row in data["dots"]], "marks": []}
        title = chart.title if len(curves) == 1 else f"{chart.title}, {words}"
        file = chart.name if len(curves) == 1 else f"{chart.name}_{words}"
        yield (
            file.replace(" ", "_"),
            _whole(charts.curves(one, names, colour, legend=True), title, data),
        )


def _of_look(look: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    colour = palette.on_paper
    for name, title, spec, rows in inspection_rows.pictures(look, colour):
        yield name, _whole(spec, title, {"points": rows})
    tokens = [inspection_rows.visible(token) for token in look["attention"]["tokens"]]
    for layer, head, rows in inspection_rows.attention(look):
        spec = inspection_charts.attention(colour)
        spec["params"][0]["value"] = tokens
        title = f"Attention, layer {layer}, head {head}"
        yield f"attention_{layer}_{head}", _whole(spec, title, {"points": rows})


def _layer_rows(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    grid = payload.layers(parts)
    edges = grid["edges"]
    return [
        {"part": part, "from": edges[at], "to": edges[at + 1], "value": value}
        for part, values in zip(grid["parts"], grid["values"], strict=True)
        for at, value in enumerate(values)
        if value is not None
    ]


def _whole(spec: dict[str, Any], title: str, data: dict[str, Any]) -> dict[str, Any]:
    """A complete specification: with its data, its title and colours on white."""
    config = {**palette.config(palette.on_paper), "background": "white", "padding": 14}
    return {
        "width": _WIDTH,
        "title": title,
        **charts.with_data(spec, {**data, "cursor": []}),
        "config": config,
    }
