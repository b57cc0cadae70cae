"""The charts of an inspected model, and of its layers over time, as Vega-Lite specifications.

Each reads its rows from the data set ``points``. A chart that encodes a value by colour uses the opacity of
one colour, which reads alike on light and dark backgrounds.
"""

from __future__ import annotations

from typing import Any

from cpulm.ui.page.charts import SCHEMA, Spec
from cpulm.ui.page.palette import Colour

_LABEL_PIXELS = 150


def layers(parts: int, colour: Colour) -> Spec:
    """Rows ``{part, from, to, value}``: each matrix over the steps."""
    return {
        **_frame(),
        "height": 15 * parts,
        "mark": {"type": "rect", "color": colour("series-1")},
        "encoding": {
            "y": {
                "field": "part",
                "type": "nominal",
                "sort": None,
                "title": None,
                "axis": {"labelLimit": _LABEL_PIXELS, "ticks": False, "domain": False, "labelOverlap": True},
            },
            "x": {
                "field": "from",
                "type": "quantitative",
                "title": "step",
                "scale": {"nice": False, "zero": False},
                "axis": {"grid": False, "format": "~s", "tickCount": 6},
            },
            "x2": {"field": "to"},
            "fillOpacity": {
                "field": "value",
                "type": "quantitative",
                "scale": {"type": "log", "range": [0.06, 1], "nice": False},
                "legend": None,
            },
            "tooltip": [
                {"field": "part", "title": "matrix"},
                {"field": "to", "title": "up to step", "type": "quantitative"},
                {"field": "value", "type": "quantitative", "format": ".4~g"},
            ],
        },
    }


def by_position(colour: Colour) -> Spec:
    """Rows ``{position, loss, low, high, range}``: the loss by the amount of context."""
    x = {
        "field": "position",
        "type": "quantitative",
        "title": "tokens of context",
        "scale": {"nice": False, "zero": False},
        "axis": {"grid": False},
    }
    y = _value("loss", "nats per token")
    tooltip = [
        {"field": "range", "title": "context"},
        {"field": "loss", "type": "quantitative", "format": ".4~g"},
        {"field": "low", "type": "quantitative", "format": ".4~g", "title": "two standard errors below"},
        {"field": "high", "type": "quantitative", "format": ".4~g", "title": "and above"},
    ]
    return {
        **_frame(),
        "height": 240,
        "encoding": {"x": x},
        "layer": [
            {
                "mark": {"type": "area", "color": colour("series-1"), "opacity": 0.18},
                "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": {
                    "type": "line",
                    "color": colour("series-1"),
                    "strokeWidth": 2,
                    "point": {"size": 18, "color": colour("series-1")},
                },
                "encoding": {"y": y, "tooltip": tooltip},
            },
        ],
    }


def by_kind(kinds: int, colour: Colour) -> Spec:
    """Rows ``{kind, loss, low, high, share, loss_share, tokens, examples}``."""
    y = {"field": "kind", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 130}}
    loss = {**_value("loss", "nats per token"), "scale": {"zero": True}}
    return {
        **_frame(),
        "height": 28 * kinds,
        "encoding": {"y": y},
        "layer": [
            {
                "mark": {"type": "bar", "cornerRadiusEnd": 3, "height": 17, "color": colour("series-1")},
                "encoding": {
                    "x": loss,
                    "tooltip": [
                        {"field": "kind"},
                        {"field": "loss", "type": "quantitative", "format": ".4~g"},
                        {"field": "share", "title": "of all tokens", "type": "quantitative", "format": ".1%"},
                        {
                            "field": "loss_share",
                            "title": "of the loss",
                            "type": "quantitative",
                            "format": ".1%",
                        },
                        {"field": "tokens", "type": "quantitative", "format": ","},
                        {"field": "examples"},
                    ],
                },
            },
            {
                "mark": {"type": "rule", "color": colour("ink"), "strokeWidth": 1.5},
                "encoding": {"x": {**loss, "field": "low"}, "x2": {"field": "high"}},
            },
        ],
    }


def next_token(tokens: int, colour: Colour) -> Spec:
    """Rows ``{place, token, probability}``, the likeliest first."""
    y = {"field": "place", "type": "ordinal", "title": None}
    share = {
        "field": "probability",
        "type": "quantitative",
        "title": "probability",
        "axis": {"format": "~%", "tickCount": 5},
        "scale": {"zero": True},
    }
    axis = {"labelExpr": "data('points')[datum.value].token", "labelFont": "monospace", "labelLimit": 130}
    return {
        **_frame(),
        "height": 24 * tokens,
        "encoding": {"y": {**y, "axis": axis}},
        "layer": [
            {
                "mark": {"type": "bar", "cornerRadiusEnd": 3, "height": 15, "color": colour("series-3")},
                "encoding": {"x": share},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 5, "color": colour("muted")},
                "encoding": {"x": share, "text": {**share, "format": ".1%"}},
            },
        ],
    }


def attention(colour: Colour) -> Spec:
    """Rows ``{from, to, weight, what}``: one head; the parameter ``tokens`` labels the axes."""
    axis = {
        "labelExpr": "tokens[datum.value]",
        "labelFont": "monospace",
        "labelLimit": 70,
        "ticks": False,
        "domain": False,
        "grid": False,
        "labelOverlap": True,
    }
    place = {"type": "ordinal", "scale": {"paddingInner": 0.06}}
    return {
        **_frame(),
        "height": 420,
        "params": [{"name": "tokens", "value": []}],
        "mark": {"type": "rect", "color": colour("series-4")},
        "encoding": {
            "y": {**place, "field": "from", "title": "from token", "axis": axis},
            "x": {**place, "field": "to", "title": "to token", "axis": {**axis, "labelAngle": -60}},
            "fillOpacity": {
                "field": "weight",
                "type": "quantitative",
                "scale": {"domain": [0, 1], "range": [0.04, 1], "type": "sqrt"},
                "legend": None,
            },
            "tooltip": [
                {"field": "what", "title": " "},
                {"field": "weight", "type": "quantitative", "format": ".1%"},
            ],
        },
    }


def heads(n_layer: int, colour: Colour) -> Spec:
    """Rows ``{layer, head, value, shown}``: one figure of every head; a click selects one (``chosen``)."""
    place = {"type": "ordinal", "scale": {"paddingInner": 0.1}}
    chosen = {"name": "chosen", "select": {"type": "point", "fields": ["layer", "head"], "clear": False}}
    return {
        **_frame(),
        "height": 34 * n_layer,
        "encoding": {
            "y": {**place, "field": "layer", "title": "layer", "axis": {"ticks": False, "domain": False}},
            "x": {
                **place,
                "field": "head",
                "title": "head",
                "axis": {"ticks": False, "domain": False, "labelAngle": 0},
            },
        },
        "layer": [
            {
                "params": [chosen],
                "mark": {
                    "type": "rect",
                    "color": colour("series-4"),
                    "cursor": "pointer",
                    "cornerRadius": 4,
                    "stroke": colour("ink"),
                },
                "encoding": {
                    "fillOpacity": {
                        "field": "value",
                        "type": "quantitative",
                        "scale": {"range": [0.08, 0.85], "zero": False},
                        "legend": None,
                    },
                    "strokeWidth": {"condition": {"param": "chosen", "value": 2, "empty": False}, "value": 0},
                },
            },
            {
                "mark": {"type": "text", "color": colour("ink"), "interactive": False, "fontSize": 11},
                "encoding": {"text": {"field": "shown", "type": "nominal"}},
            },
        ],
    }


def embedding_map(kinds: list[str], colour: Colour) -> Spec:
    """Rows ``{x, y, token, kind, label}``; ``label`` is empty for tokens shown without their name."""
    axis: dict[str, Any] = {"labels": False, "ticks": False, "grid": False, "domain": False}
    scale = {"zero": False, "nice": True}
    return {
        **_frame(),
        "height": 460,
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": None, "axis": axis, "scale": scale},
            "y": {"field": "y", "type": "quantitative", "title": None, "axis": axis, "scale": scale},
            "color": {
                "field": "kind",
                "type": "nominal",
                "scale": {
                    "domain": kinds,
                    "range": [colour(f"series-{at % 8 + 1}") for at in range(len(kinds))],
                },
                "legend": {
                    "title": None,
                    "orient": "top",
                    "columns": {"expr": "width < 480 ? 2 : 6"},
                    "symbolType": "circle",
                },
            },
        },
        "layer": [
            {
                "mark": {"type": "point", "filled": True, "size": 30, "opacity": 0.75},
                "encoding": {"tooltip": [{"field": "token"}, {"field": "kind"}]},
                "params": [{"name": "move", "select": {"type": "interval", "zoom": False}, "bind": "scales"}],
            },
            {
                "mark": {"type": "text", "dy": -8, "fontSize": 10, "font": "monospace", "interactive": False},
                "encoding": {"text": {"field": "label", "type": "nominal"}},
            },
        ],
    }


def units(n_layer: int, colour: Colour) -> Spec:
    """Rows ``{layer, state, share, units}``: idle MLP units on the text."""
    states = ["never active", "constant"]
    return {
        **_frame(),
        "height": 26 * n_layer,
        "mark": {"type": "bar", "height": 16},
        "encoding": {
            "y": {"field": "layer", "type": "ordinal", "title": "layer"},
            "x": {
                "field": "share",
                "type": "quantitative",
                "title": "share of the layer's units",
                "axis": {"format": "~%", "tickCount": 5},
                "scale": {"zero": True},
            },
            "color": {
                "field": "state",
                "type": "nominal",
                "scale": {"domain": states, "range": [colour("series-7"), colour("series-6")]},
                "legend": {"title": None, "orient": "top", "symbolType": "square"},
            },
            "tooltip": [
                {"field": "layer"},
                {"field": "state"},
                {"field": "units", "type": "quantitative"},
                {"field": "share", "type": "quantitative", "format": ".1%"},
            ],
        },
    }


def _frame() -> Spec:
    return {
        "$schema": SCHEMA,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "points"},
    }


def _value(field: str, title: str) -> Spec:
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False},
        "axis": {"tickCount": 5},
    }
