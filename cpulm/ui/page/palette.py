"""The colours of the page and its charts by purpose, for light and dark backgrounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LIGHT = {
    "page": "#f6f7f9",
    "card": "#ffffff",
    "ink": "#1b2330",
    "muted": "#5c6675",
    "line": "#e1e5eb",
    "grid": "#edf0f4",
    "accent": "#2563c9",
    "good": "#16803c",
    "note": "#2563c9",
    "warning": "#b45309",
    "series-1": "#2563c9",
    "series-2": "#d9480f",
    "series-3": "#16803c",
    "series-4": "#a21caf",
    "series-5": "#0e7490",
    "series-6": "#a16207",
    "series-7": "#be123c",
    "series-8": "#64748b",
}
DARK = {
    "page": "#0e1218",
    "card": "#171d26",
    "ink": "#e7ebf0",
    "muted": "#9aa5b4",
    "line": "#2a3340",
    "grid": "#232b36",
    "accent": "#6ea8fe",
    "good": "#4ade80",
    "note": "#6ea8fe",
    "warning": "#fbbf24",
    "series-1": "#6ea8fe",
    "series-2": "#ff9f5a",
    "series-3": "#5bd68a",
    "series-4": "#e38bf0",
    "series-5": "#4fd1e0",
    "series-6": "#e6c35c",
    "series-7": "#ff8095",
    "series-8": "#a3afbf",
}
SERIES = 8
"""Number of distinct colours; a ninth curve uses the first again."""

Colour = Callable[[str], str]


def on_page(name: str) -> str:
    """The colour as a CSS variable, so that a chart follows the page's theme, also in print."""
    return f"var(--{name})"


def on_paper(name: str) -> str:
    """The colour itself, for a light background."""
    return LIGHT[name]


def css() -> str:
    """The variables of both themes; ``data-theme`` on the root overrides the system's preference."""
    light, dark = _variables(LIGHT), _variables(DARK)
    return (
        f":root {{ color-scheme: light; {light} }}\n"
        f":root[data-theme=dark] {{ color-scheme: dark; {dark} }}\n"
        "@media screen and (prefers-color-scheme: dark) {\n"
        f"  :root:not([data-theme=light]) {{ color-scheme: dark; {dark} }}\n}}\n"
        f"@media print {{ :root, :root[data-theme=dark] {{ color-scheme: light; {light} }} }}\n"
    )


def config(colour: Colour) -> dict[str, Any]:
    """Vega-Lite's configuration: what all charts have in common."""
    text = {"labelColor": colour("muted"), "titleColor": colour("muted"), "titleFontWeight": "normal"}
    return {
        "background": None,
        "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif",
        "view": {"stroke": None},
        "axis": {
            **text,
            "labelFontSize": 11,
            "titleFontSize": 11,
            "gridColor": colour("grid"),
            "domainColor": colour("line"),
            "tickColor": colour("line"),
        },
        "legend": {**text, "labelFontSize": 12, "symbolType": "stroke", "symbolStrokeWidth": 3},
        "header": {**text, "labelFontSize": 11},
        "range": {"category": [colour(f"series-{number}") for number in range(1, SERIES + 1)]},
        "title": {"color": colour("ink"), "anchor": "start", "fontSize": 14, "fontWeight": 600},
        "text": {"color": colour("ink")},
    }


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
