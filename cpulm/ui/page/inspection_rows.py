"""The rows of the charts of an inspected model, from ``ModelReport.to_json``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cpulm.ui.page import inspection_charts
from cpulm.ui.page.charts import Spec
from cpulm.ui.page.palette import Colour
from cpulm.ui.page.payload import number, printable

Look = Mapping[str, Any]
Rows = list[dict[str, Any]]

NAMED = 70
"""Tokens with a label on the map of embeddings; more labels would overlap."""
_LABEL_CHARACTERS = 9
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def pictures(look: Look, colour: Colour) -> Iterator[tuple[str, str, Spec, Rows]]:
    """Yield name, title, specification and rows of each single chart (attention has many)."""
    context, kinds_of, likely, idle = by_position(look), by_kind(look), next_token(look), units(look)
    made = (
        ("loss_by_context", "Loss by context", inspection_charts.by_position(colour), context),
        ("loss_by_kind", "Loss by kind of token", inspection_charts.by_kind(len(kinds_of), colour), kinds_of),
        ("next_token", "Next token", inspection_charts.next_token(len(likely), colour), likely),
        (
            "idle_units",
            "Idle MLP units on this text",
            inspection_charts.units(len(look["units"]), colour),
            idle,
        ),
    )
    for name, title, spec, rows in made:
        if rows:
            yield name, title, spec, rows
    kinds = list(dict.fromkeys(look["embedding_map"]["kinds"]))
    spec = inspection_charts.embedding_map(kinds, colour)
    yield "embeddings", "Map of the embeddings", spec, embedding_map(look)


def by_position(look: Look) -> Rows:
    """The loss by the number of tokens of context, with two standard errors to either side."""
    found = look["by_position"]
    columns = [found[name] for name in ("first", "last", "loss", "standard_error")]
    return [
        {
            "position": (first + last) / 2 + 1,
            "range": f"{first + 1}" if first == last else f"{first + 1} to {last + 1}",
            **_with_errors(loss, error),
        }
        for first, last, loss, error in zip(*columns, strict=True)
        if loss is not None
    ]


def by_kind(look: Look) -> Rows:
    """The loss by kind of token, likewise."""
    return [
        {
            **{name: kind[name] for name in ("kind", "tokens", "share", "loss_share")},
            **_with_errors(kind["loss"], kind["standard_error"]),
            "examples": "  ".join(map(visible, kind["examples"])),
        }
        for kind in look["by_kind"]
        if kind["loss"] is not None
    ]


def next_token(look: Look) -> Rows:
    """The likeliest tokens after the prompt; ``place`` distinguishes those that look alike."""
    return [
        {"place": place, "token": visible(item["token"]), "probability": item["probability"]}
        for place, item in enumerate(look["next_token"]["alternatives"])
    ]


def units(look: Look) -> Rows:
    """MLP units that are never active or constant; empty if there are none."""
    rows = [
        {"layer": layer["layer"], "state": state, "units": idle, "share": number(idle / layer["units"])}
        for layer in look["units"]
        for state, idle in (("never active", layer["never_active"]), ("constant", layer["constant"]))
    ]
    return rows if any(row["units"] for row in rows) else []


def embedding_map(look: Look) -> Rows:
    """The most frequent tokens in the plane; the first :data:`NAMED` with their names."""
    found = look["embedding_map"]
    columns = [found[name] for name in ("x", "y", "tokens", "kinds")]
    return [
        {"x": x, "y": y, "token": visible(token), "kind": kind, "label": _label(token) if at < NAMED else ""}
        for at, (x, y, token, kind) in enumerate(zip(*columns, strict=True))
    ]


def attention(look: Look) -> Iterator[tuple[int, int, Rows]]:
    """Layer, head and rows of each map."""
    for layer, heads in enumerate(look["attention"]["weights"]):
        for head, weights in enumerate(heads):
            rows = [
                {"from": at, "to": to, "weight": weight}
                for at, row in enumerate(weights)
                for to, weight in enumerate(row)
            ]
            yield layer, head, rows


def visible(token: str) -> str:
    """A token's text with visible blanks, as on the page."""
    signs = token.replace("\n", "↵").replace("\t", "→").replace(" ", "·")
    return printable(_CONTROL.sub(lambda char: f"<0x{ord(char[0]):02X}>", signs)) or "∅"


def _label(token: str) -> str:
    text = visible(token)
    return text if len(text) <= _LABEL_CHARACTERS else f"{text[: _LABEL_CHARACTERS - 1]}…"


def _with_errors(loss: float, error: float | None) -> dict[str, float | None]:
    return {
        "loss": loss,
        "low": number(loss - 2 * (error or 0.0)),
        "high": number(loss + 2 * (error or 0.0)),
    }
