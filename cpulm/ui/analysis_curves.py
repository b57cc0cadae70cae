"""A report's curves in the terminal: one run's measures, or several runs' losses in one chart."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.style import Style

from cpulm.ui.canvas import Glyphs, Line, Palette, beside, box, exactly, text
from cpulm.ui.chart import BRAILLE, Cell, Frame, chart, merged, nice, x_axis, y_labels
from cpulm.ui.curve import Bucket

if TYPE_CHECKING:
    from cpulm.analysis.report import Curve, Report

Floats = npt.NDArray[np.float64]

_BUCKETS = 512
_MAIN_HEIGHT, _SMALL_HEIGHT = 15, 9
_SMALL_WIDTH = 38
_SMALL = (("grad_norm", "gradient norm"), ("tok_per_s", "tokens per second"), ("lr", "learning rate"))
"""Measures, the most important first; as many as fit are shown."""
_EARLY = 0.08
"""The first fraction of the run whose losses may leave the chart at the top: they would squash the rest."""
_STYLES = tuple(
    Style(color=color)
    for color in ("steel_blue1", "light_goldenrod2", "dark_sea_green3", "indian_red1", "plum2", "grey66")
)


def buckets(curve: Curve) -> list[Bucket]:
    """Group neighbouring values of a curve; the median replaces the mean, because peaks were kept."""
    parts = np.array_split(np.arange(len(curve.values)), min(_BUCKETS, len(curve.values)))
    found = []
    for part in parts:
        values = curve.values[part]
        total = float(np.median(values)) * len(part)
        first, last = int(curve.steps[part[0]]), int(curve.steps[part[-1]])
        found.append(Bucket(first, last, float(values.min()), float(values.max()), total, len(part)))
    return found


def run_curves(report: Report, width: int, glyphs: Glyphs) -> list[Line]:
    """The loss in a large chart, and as many other measures side by side as fit."""
    lines: list[Line] = []
    losses, validations = (report.curves.get(name) for name in ("loss", "val_loss"))
    if losses is not None:
        checked = [] if validations is None else [_point(*pair) for pair in _pairs(validations)]
        note = f"{glyphs.validation} validation" if checked else ""
        drawn = chart(buckets(losses), checked, width - 2, _MAIN_HEIGHT - 2, glyphs)
        lines += box("loss by step", drawn, width, _MAIN_HEIGHT, glyphs, note)
    there = [(report.curves[name], title) for name, title in _SMALL if name in report.curves]
    there = there[: max(1, width // _SMALL_WIDTH)]
    small: list[Line] = []
    for number, (curve, title) in enumerate(there):
        title += _beside_muon(report, curve)
        room = width // len(there) + (number < width % len(there))
        drawn = chart(buckets(curve), [], room - 2, _SMALL_HEIGHT - 2, glyphs)
        framed = box(title, drawn, room, _SMALL_HEIGHT, glyphs)
        small = framed if number == 0 else beside(small, framed)
    return lines + small


def _beside_muon(report: Report, curve: Curve) -> str:
    """Behind the title of AdamW's learning rate: Muon's, which goes the same way at another height."""
    muon = report.curves.get("muon_lr")
    if muon is None or curve is not report.curves.get("lr"):
        return ""
    return f", to {curve.values.max():.2g}; Muon's to {muon.values.max():.2g}"


def _pairs(curve: Curve) -> list[tuple[int, float]]:
    return list(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))


def _point(step: int, value: float) -> Bucket:
    return Bucket(step, step, value, value, value, 1)


@dataclass(frozen=True)
class Series:
    """One run's curve among others: ``number`` is the run's rank, from 0, and sets letter and colour."""

    number: int
    x: Floats
    y: Floats

    @property
    def letter(self) -> str:
        """Its letter in the chart."""
        return letter_of(self.number)

    @property
    def style(self) -> Style:
        """Its colour."""
        return _STYLES[self.number % len(_STYLES)]


def letter_of(number: int) -> str:
    """``a`` for the first run; runs beyond ``z`` have no letter and no curve."""
    return string.ascii_lowercase[number] if number < len(string.ascii_lowercase) else ""


def overlay(
    series: Sequence[Series],
    width: int,
    height: int,
    glyphs: Glyphs,
    label_of: Callable[[float], str],
    *,
    colour: bool,
) -> list[Line]:
    """Curves in one chart, the first one on top: exactly ``height`` lines of ``width`` cells.

    Without colour, or without braille, each is drawn by its letter.
    """
    view = _frame(series)
    if view is None or width < 24 or height < 6:
        return [exactly([], width) for _ in range(height)]
    rows = height - 2
    labels = y_labels(view, rows)
    margin = max(len(label) for label in labels.values()) + 1
    columns = width - margin - 1
    plot: list[list[Cell]] = [[(" ", Palette.plain)] * columns for _ in range(rows)]
    draw = _dots if colour and glyphs.braille else _letters
    for one in reversed(series):
        draw(plot, one, view)
    for one in reversed(series):
        _mark_end(plot, one, view)
    lines: list[Line] = []
    for number, cells in enumerate(plot):
        label = labels.get(number, "")
        edge = glyphs.tick_left if label else glyphs.vertical
        lines.append([text(f"{label:>{margin}}", Palette.label), text(edge, Palette.faint), *merged(cells)])
    return [*lines, *x_axis(view, margin, columns, glyphs, label_of)]


def _frame(series: Sequence[Series]) -> Frame | None:
    there = [one for one in series if len(one.x)]
    if not there:
        return None
    first = min(float(one.x[0]) for one in there)
    last = max(float(one.x[-1]) for one in there)
    early = first + _EARLY * (last - first)
    # A run that is shorter than the early part of the longest one is shown whole.
    shown = [one.y[one.x >= early] if one.x[-1] > early else one.y for one in there]
    low, high = min(float(y.min()) for y in shown), max(float(y.max()) for y in shown)
    high = max(high, low + max(1e-3, 1e-3 * abs(low)))
    tick = nice((high - low) / 4)
    return Frame(first, last, np.floor(2 * low / tick) * tick / 2, np.ceil(2 * high / tick) * tick / 2, early)


def _heights(one: Series, view: Frame, columns: int) -> list[tuple[int, float]]:
    """(column, height 0 to 1) of the curve, joined by straight lines; values above the chart are left out."""
    spread = (view.last - view.first) or 1.0
    at = (one.x - view.first) / spread * (columns - 1)
    begin, end = int(np.ceil(at[0] - 1e-9)), int(np.floor(at[-1] + 1e-9))
    if end < begin:
        begin = end = round(float(at.mean()))
    where = np.arange(begin, end + 1)
    values = np.interp(where, at, one.y)
    return [(int(x), view.up(float(y))) for x, y in zip(where, values, strict=True) if y <= view.high]


def _dots(plot: list[list[Cell]], one: Series, view: Frame) -> None:
    rows, columns = len(plot), len(plot[0])
    before: int | None = None
    for x, height in _heights(one, view, 2 * columns):
        here = min(4 * rows - 1, int(height * 4 * rows))
        low, high = (here, here) if before is None else (min(before, here), max(before, here))
        for up in range(low, high + 1):
            down = 4 * rows - 1 - up
            char, other = plot[down // 4][x // 2]
            bits = ord(char) - 0x2800 if char >= "\u2800" and other is one.style else 0
            plot[down // 4][x // 2] = (chr(0x2800 | bits | BRAILLE[down % 4][x % 2]), one.style)
        before = here


def _letters(plot: list[list[Cell]], one: Series, view: Frame) -> None:
    rows = len(plot)
    for x, height in _heights(one, view, len(plot[0])):
        plot[rows - 1 - min(rows - 1, int(height * rows))][x] = (one.letter, one.style)


def _mark_end(plot: list[list[Cell]], one: Series, view: Frame) -> None:
    """Put its letter at the curve's end, or beside it if another letter is there."""
    points = _heights(one, view, len(plot[0]))
    if not points:
        return
    x, height = points[-1]
    row = len(plot) - 1 - min(len(plot) - 1, int(height * len(plot)))
    while x > 0 and plot[row][x][0].isalpha() and plot[row][x][0] != one.letter:
        x -= 1
    plot[row][x] = (one.letter, one.style + Style(bold=True))
