"""Runs compared in the terminal: what differs, the effect of it, and their curves in one chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from cpulm.ui.analysis import value_text
from cpulm.ui.analysis_curves import Series, letter_of, overlay
from cpulm.ui.canvas import UNICODE, Drawing, Glyphs, box
from cpulm.ui.tables import rows
from cpulm.ui.terminal_text import harmless
from cpulm.units import format_count, format_duration

if TYPE_CHECKING:
    from cpulm.analysis.compare import By, ComparedRun, RunComparison

_HEIGHT = 20
_BETWEEN = 2
_MEASURES = {"loss": "validation loss", "bits_per_byte": "validation bits per byte"}
_ALONG = {"steps": "step", "tokens": "trained tokens", "time": "time", "flops": "FLOPs"}
_TIME_UNITS = ((180.0, 1.0, "s"), (3 * 3600.0, 60.0, "m"), (float("inf"), 3600.0, "h"))
"""(limit of the axis, seconds per unit, sign of the unit), all limits in seconds."""


def comparison_screen(
    comparison: RunComparison,
    series: Sequence[Series | None],
    by: By,
    width: int,
    glyphs: Glyphs = UNICODE,
    *,
    colour: bool = True,
) -> RenderableType:
    """The whole comparison.

    Args:
        series: for each row its curve over steps, tokens, seconds or FLOPs; None if it has none.
        by: which of these the x axis is.
    """
    parts: list[RenderableType] = [_table(comparison, width)]
    if comparison.keys:
        parts.append(_settings(comparison))
    if comparison.effects:
        parts.append(_effects(comparison))
    there = [one for one in series if one is not None and one.letter]
    if there:
        parts.append(_picture(comparison, there, by, width, glyphs, colour=colour))
    parts += [Text(harmless(note)) for note in comparison.notes]
    return Group(*[line for part in parts for line in (part, "")][:-1])


def _picture(
    comparison: RunComparison, series: Sequence[Series], by: By, width: int, glyphs: Glyphs, *, colour: bool
) -> RenderableType:
    scale, label_of = _axis(by, max(float(one.x.max()) for one in series))
    scaled = [replace(one, x=one.x * scale) for one in series]
    drawn = overlay(scaled, width - 2, _HEIGHT - 2, glyphs, label_of, colour=colour)
    framed = box(f"{_MEASURES[comparison.measure]} by {_ALONG[by]}", drawn, width, _HEIGHT, glyphs)
    return Drawing([*framed, []])  # with a line end after the last


def _axis(by: By, furthest: float) -> tuple[float, Callable[[float], str]]:
    """The factor from the curves' unit to the axis's, and the format of its labels."""
    if by != "time":
        return 1.0, _short
    _, unit, sign = next(one for one in _TIME_UNITS if furthest < one[0])
    return 1 / unit, lambda place: f"{place:.0f}{sign}"


def _short(count: float) -> str:
    if count >= 1e15:
        return f"{count:.1e}".replace("e+", "e")
    value, _, unit = format_count(round(count)).partition(" ")
    value = value.rstrip("0").rstrip(".") if "." in value else value
    return value + unit


def _bits_per_byte(row: ComparedRun) -> str:
    return "not comparable" if row.text_lost else _figure(row.bits_per_byte)


def _table(comparison: RunComparison, width: int) -> RenderableType:
    """The runs, best first, with as many columns as fit."""
    columns: dict[str, list[str]] = {
        "": [letter_of(number) for number in range(len(comparison.rows))],
        "run": [row.name for row in comparison.rows],
        "bits/byte": [
            "not comparable" if row.text_lost else _figure(row.bits_per_byte) for row in comparison.rows
        ],
        **({"text": [str(row.val_text) for row in comparison.rows]} if _several_texts(comparison) else {}),
        "behind": [_behind(row) for row in comparison.rows],
        "loss": [_figure(row.loss) for row in comparison.rows],
        "steps": [f"{row.steps:,}" for row in comparison.rows],
        "tokens": [format_count(row.tokens) for row in comparison.rows],
        "time": [format_duration(row.seconds) for row in comparison.rows],
        "parameters": [_count(row.params_total) for row in comparison.rows],
        "tok/s": [_count(row.tokens_per_second) for row in comparison.rows],
        "state": [row.state for row in comparison.rows],
    }
    if comparison.measure == "bits_per_byte":
        # Losses of different tokenizers are not comparable, so they are not shown together.
        del columns["loss"]
    for name in ("tok/s", "state", "parameters", "tokens", "steps"):
        if _natural_width(columns) > width:
            del columns[name]
    return rows(
        "Best first on each validation text" if _several_texts(comparison) else "Best first",
        list(columns),
        zip(*columns.values(), strict=True),
    )


def _settings(comparison: RunComparison) -> RenderableType:
    """One line per setting that differs, one column per run; with many runs, one line per run."""
    if len(comparison.rows) <= 4:
        heads = ["setting", *[f"{letter_of(n)} {row.name}" for n, row in enumerate(comparison.rows)]]
        records = [
            [key, *[value_text(key, row.values.get(key)) for row in comparison.rows]]
            for key in comparison.keys
        ]
        return rows("What differs", heads, records)
    keys = [key.partition(".")[2] or key for key in comparison.keys]
    by_run = [
        [letter_of(n), row.name, *[value_text(key, row.values.get(key)) for key in comparison.keys]]
        for n, row in enumerate(comparison.rows)
    ]
    return rows("What differs", ["", "run", *keys], by_run)


def _effects(comparison: RunComparison) -> RenderableType:
    best: dict[str, float] = {}
    for effect in comparison.effects:
        best.setdefault(effect.key, effect.mean_bits_per_byte)  # the first of a key is its best
    records = [
        [
            effect.key,
            value_text(effect.key, effect.value),
            str(effect.runs),
            f"{effect.mean_bits_per_byte:.4f}",
            f"+{effect.mean_bits_per_byte - best[effect.key]:.4f}",
        ]
        for effect in comparison.effects
    ]
    return rows("Effect of each setting", ["setting", "value", "runs", "mean bits/byte", "behind"], records)


def _natural_width(columns: dict[str, list[str]]) -> int:
    widths = [max(cell_len(value) for value in [name, *values]) for name, values in columns.items()]
    return sum(widths) + (_BETWEEN + 1) * (len(widths) - 1)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _several_texts(comparison: RunComparison) -> bool:
    return len({row.val_text for row in comparison.rows}) > 1


def _behind(row: ComparedRun) -> str:
    return "-" if row.behind is None else f"+{row.behind:.4f}"


def _count(value: float | None) -> str:
    return "-" if value is None else format_count(value)
