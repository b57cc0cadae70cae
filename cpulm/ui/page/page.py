"""The page: one file that needs no network and can be sent by email."""

from __future__ import annotations

import contextlib
import html
import json
import re
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpulm import __version__
from cpulm.atomic import replacing, write_text
from cpulm.cache_dir import cache_folder
from cpulm.errors import ResourceError, SettingsError
from cpulm.ui.page import charts, inspection_charts, inspection_rows, palette, payload
from cpulm.ui.page.compared import MOST_RUNS, compared
from cpulm.units import format_count

if TYPE_CHECKING:
    from cpulm.analysis.compare import RunComparison
    from cpulm.analysis.report import Report

_SCRIPTS = ("page.js", "curves.js", "look.js", "start.js")
_LOGARITHMIC = ("loss", "grad_norm", "lr")
"""Charts that a log scale makes clearer."""


def write_page(
    path: Path,
    reports: Sequence[Report],
    *,
    look: Mapping[str, Any] | None = None,
    comparison: RunComparison | None = None,
) -> None:
    """Write the page of one run, or of several compared, to ``path``, whole or not at all.

    Args:
        reports: of the runs.
        look: the inspected model, from ``ModelReport.to_json``.
        comparison: of several runs; its own runs are shown.

    Raises:
        SettingsError: if the library that draws is not installed, or ``path`` cannot be written.
        ResourceError: if the disk is full.
    """
    text = page(reports, look=look, comparison=comparison)
    try:
        with replacing(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}", "choose another place") from error


def page(
    reports: Sequence[Report],
    *,
    look: Mapping[str, Any] | None = None,
    comparison: RunComparison | None = None,
) -> str:
    """The page's HTML; arguments as for :func:`write_page`."""
    names = [report.name for report in reports]
    if comparison is not None:
        reports = comparison.reports[:MOST_RUNS]
        names = [row.name for row in comparison.rows[:MOST_RUNS]]
    runs = [payload.run(report, len(reports), name) for report, name in zip(reports, names, strict=True)]
    table = None if comparison is None else compared(comparison)
    title = table["title"] if table else runs[0]["name"]
    data = {
        "title": title,
        "subtitle": "" if table else payload.printable(_subtitle(reports[0])),
        "version": __version__,
        "written": time.strftime("%d %B %Y, %H:%M"),
        "findings": table["findings"] if table else runs[0]["findings"],
        "config": palette.config(palette.on_page),
        "colours": palette.SERIES,
        "dots": payload.DOTS,
        "charts": _charts(reports, [run["name"] for run in runs]),
        "pictures": _pictures(look),
        "runs": runs,
        "comparison": table,
        "look": look,
    }
    parts = {
        "title": f"{html.escape(title)} · cpulm",
        "version": __version__,
        "style": palette.css() + _asset("page.css"),
        "data": _embedded(data),
        "vega": javascript(),
        "script": "\n".join(_asset(name) for name in _SCRIPTS),
    }
    # In one pass, so that the content of a sample is never taken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], _asset("page.html"))


def require_vega() -> Any:
    """Import the package ``vl_convert``, which contains Vega, Vega-Lite and a renderer to files.

    Raises:
        SettingsError: if it is not installed: it has no wheels for some machines.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise SettingsError(
            "pages and pictures need the package vl-convert-python, which is not installed",
            "pip install vl-convert-python",
        ) from error
    return vl_convert


@lru_cache(maxsize=1)
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that can be embedded in a page.

    Raises:
        SettingsError: as :func:`require_vega`.
    """
    vega = require_vega()
    kept = cache_folder() / f"vega-{version('vl-convert-python')}.js"
    try:
        script = kept.read_text(encoding="utf-8")
    except (OSError, ValueError):
        # Bundling takes 2 s; the rest of a page takes 0.2 s.
        script = vega.javascript_bundle().replace("</script", "<\\/script")
        with contextlib.suppress(OSError, ResourceError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept, script)
    return script


def _charts(reports: Sequence[Report], names: Sequence[str]) -> list[dict[str, Any]]:
    """Charts that have curves; with several runs, training and validation have separate charts."""
    found = []
    for chart in charts.charts_for(max(report.figures.text_lost for report in reports)):
        curves = [(name, words) for name, words in chart.curves if any(name in r.curves for r in reports)]
        groups = [curves] if len(reports) == 1 and curves else [[curve] for curve in curves]
        for group in groups:
            lines = _lines(reports, names, group)
            series = [line["series"] for line in lines]
            extra = f", {group[0][1]}" if len(groups) > 1 else ""
            found.append(
                {
                    "name": chart.name if len(groups) == 1 else f"{chart.name}-{group[0][0]}",
                    "title": chart.title + extra,
                    "unit": chart.unit,
                    "log": chart.name in _LOGARITHMIC,
                    "lines": lines,
                    "spec": charts.curves(chart, series, palette.on_page, legend=False),
                }
            )
    return found


def _lines(
    reports: Sequence[Report], names: Sequence[str], curves: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    alone = len(reports) == 1
    lines = []
    for at, report in enumerate(reports):
        for number, (name, words) in enumerate(curves):
            if name in report.curves:
                colour = (number if alone else at) % palette.SERIES + 1
                series = words if alone else names[at]
                lines.append({"run": at, "curve": name, "series": series, "colour": colour})
    return lines


def _pictures(look: Mapping[str, Any] | None) -> dict[str, Any]:
    """Specifications by name, with their rows unless these depend on the reader's choice."""
    colour = palette.on_page
    pictures: dict[str, Any] = {
        "time_parts": {"spec": charts.time_parts(5, colour)},
        "layers": {"spec": inspection_charts.layers(1, colour)},
    }
    if look is not None:
        pictures["attention"] = {"spec": inspection_charts.attention(colour)}
        pictures["heads"] = {"spec": inspection_charts.heads(len(look["attention"]["weights"]), colour)}
        for name, title, spec, rows in inspection_rows.pictures(look, colour):
            pictures[name] = {"spec": spec, "points": rows, "title": title}
    return pictures


def _subtitle(report: Report) -> str:
    figures = report.figures
    parts = [f"preset {figures.preset}" if figures.preset else ""]
    if figures.params_total:
        parts.append(f"{format_count(figures.params_total)} parameters")
    parts.append(figures.device_name or "")
    if figures.began:
        parts.append(time.strftime("%d %B %Y, %H:%M", time.localtime(figures.began)))
    return " · ".join(part for part in parts if part)


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON in which no text can end the enclosing script element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files("cpulm.ui.page").joinpath(name).read_text(encoding="utf-8")
