"""A loss curve drawn with braille dots, two by four to a cell, or with ASCII characters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.segment import Segment
from rich.style import Style

from cpulm.ui.canvas import Glyphs, Line, Palette, exactly, text
from cpulm.ui.curve import Bucket

Cell = tuple[str, Style]
"""One character of the chart."""

_EARLY = 0.08
"""The first fraction of the steps whose losses may leave the chart at the top: they would squash the rest."""
_FEW = 24
"""Up to this many points the whole range is shown."""
_CLIPPED = 0.1
"""A peak above the chart by this fraction of its range is marked with its value."""
_SMOOTHED_PARTS = 60
"""The line is the mean over 1/60 of the chart's width to either side."""
BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a braille character by row and column of its dots."""
_TICKS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Frame:
    """What the chart shows: steps from ``first`` to ``last``, values from ``low`` to ``high``."""

    first: float
    last: float
    low: float
    high: float
    early: float

    def across(self, step: float) -> float:
        """Where ``step`` lies, 0 to 1 from left to right; in a damaged record steps may lie outside."""
        return min(1.0, max(0.0, (step - self.first) / max(1, self.last - self.first)))

    def up(self, value: float) -> float:
        """Where ``value`` lies, 0 to 1 from the bottom; values outside lie on the edge."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def frame(losses: Sequence[Bucket], validations: Sequence[Bucket]) -> Frame:
    """Choose the visible range: all steps, and the values after the first steep fall.

    Single peaks of the training loss above 98% of its values touch the upper edge and do not squash the rest.
    Every validation after the first steep fall is inside: if they rise, the chart shows by how much.
    """
    first, last = losses[0].first, losses[-1].last
    everything = [*losses, *validations]
    early = first + _EARLY * (last - first)
    later = [bucket for bucket in everything if bucket.first >= early]
    shown = everything if len(losses) <= _FEW or len(later) < _FEW else later
    highs = sorted(bucket.high for bucket in shown)
    top = highs[-1] if len(highs) <= _FEW else highs[math.ceil(0.98 * (len(highs) - 1))]
    top = max([top, *(bucket.high for bucket in validations if bucket.first >= early)])
    bottom = min(bucket.low for bucket in everything)
    top = max(top, bottom + max(1e-3, 1e-3 * abs(bottom)))
    tick = nice((top - bottom) / 4)
    # Round limits change rarely, so the chart stands still from frame to frame.
    low = math.floor(2 * bottom / tick) * tick / 2
    high = math.ceil(2 * top / tick) * tick / 2
    return Frame(first, last, low, high, early)


def nice(rough: float) -> float:
    """Round up to 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(nice * power for nice in _TICKS if nice * power >= rough * (1 - 1e-9))


def chart(
    losses: Sequence[Bucket], validations: Sequence[Bucket], width: int, height: int, glyphs: Glyphs
) -> list[Line]:
    """Exactly ``height`` lines of ``width`` cells: the mean as a line, the range behind it, axes."""
    if not losses or width < 16 or height < 4:
        return [exactly([], width) for _ in range(height)]
    view = frame(losses, validations)
    rows = height - 2
    labels = y_labels(view, rows)
    margin = max(len(label) for label in labels.values()) + 1
    columns = width - margin - 1
    plot = _braille(losses, view, columns, rows) if glyphs.braille else _ascii(losses, view, columns, rows)
    for bucket in validations:
        column = min(columns - 1, int(view.across(bucket.last) * columns))
        row = rows - 1 - min(rows - 1, int(view.up(bucket.mean) * rows))
        plot[row][column] = (glyphs.validation, Palette.mark)
    lines: list[Line] = []
    if losses[0].high > view.high:
        _say_where_it_began(plot, f"{glyphs.up}{losses[0].high:.2f}")
    _mark_clipped(plot, losses, view, glyphs)
    for number, cells in enumerate(plot):
        label = labels.get(number, "")
        edge = glyphs.tick_left if label else glyphs.vertical
        lines.append([text(f"{label:>{margin}}", Palette.label), text(edge, Palette.faint), *merged(cells)])
    return [*lines, *x_axis(view, margin, columns, glyphs)]


def _say_where_it_began(plot: list[list[Cell]], words: str) -> None:
    """Write the first loss where the curve enters from above the chart, if there is room."""
    top = "".join(char for char, _ in plot[0])
    # At the left edge, or else after the place where the curve enters.
    at = 0 if top.startswith(" " * (len(words) + 1)) else top.find(" " * (len(words) + 2), 1) + 1
    if at or top[: len(words) + 1].isspace():
        plot[0][at : at + len(words)] = [(char, Palette.label) for char in words]


def _mark_clipped(plot: list[list[Cell]], losses: Sequence[Bucket], view: Frame, glyphs: Glyphs) -> None:
    """Write the value of the highest later peak at the upper edge if it lies above the chart."""
    clear = view.high + _CLIPPED * (view.high - view.low)
    beyond = [bucket for bucket in losses if bucket.high > clear and bucket.first >= view.early]
    if not beyond:
        return
    peak = max(beyond, key=lambda bucket: bucket.high)
    words = f"{glyphs.up}{peak.high:.2f}"
    at = round(view.across((peak.first + peak.last) / 2) * (len(plot[0]) - 1)) + 1
    at = max(0, min(at, len(plot[0]) - len(words)))
    if all(style is not Palette.label for _, style in plot[0][max(0, at - 1) : at + len(words) + 1]):
        plot[0][at : at + len(words)] = [(char, Palette.label) for char in words]


def y_labels(view: Frame, rows: int) -> dict[int, str]:
    """Row -> label, for round values at least two rows apart, at most seven of them."""
    tick = nice((view.high - view.low) / rows * max(2.0, rows / 7))
    decimals = max(0, -math.floor(math.log10(tick) + 1e-9))
    if round(tick, decimals) != round(tick, decimals + 1):
        decimals += 1  # steps of 2.5 need one more
    labels: dict[int, str] = {}
    for count in range(math.ceil(view.low / tick - 1e-9), math.floor(view.high / tick + 1e-9) + 1):
        row = rows - 1 - min(rows - 1, int(view.up(count * tick) * rows))
        labels.setdefault(row, f"{count * tick:.{decimals}f}")
    return labels


def x_axis(
    view: Frame,
    margin: int,
    columns: int,
    glyphs: Glyphs,
    label_of: Callable[[float], str] = lambda step: step_label(int(step)),
) -> list[Line]:
    """The axis, and below it labels at round values and the last step at the right."""
    axis = [glyphs.horizontal] * columns
    under = [" "] * columns
    newest = label_of(view.last)
    under[columns - len(newest) :] = newest
    axis[columns - 1] = glyphs.tick_down
    tick = max(1.0, nice(max(1, view.last - view.first) / max(1, columns // 14)))
    for count in range(math.floor(view.first / tick), math.ceil(view.last / tick)):
        step = max(view.first, int(count * tick))
        label = label_of(step)
        column = int(view.across(step) * columns)
        start = max(0, column - len(label) // 2)
        end = start + len(label)
        free = "".join(under[max(0, start - 1) : end]).isspace()
        if free and end + 1 < columns - len(newest):
            under[start:end] = label
            axis[column] = glyphs.tick_down
    return [
        [text(" " * margin), text(glyphs.axis_corner + "".join(axis), Palette.faint)],
        [text(" " * (margin + 1)), text("".join(under), Palette.label)],
    ]


def step_label(step: int) -> str:
    """``950``, ``12.5k``, ``1.2M``: at most five characters up to a hundred million."""
    if step < 10_000:
        return str(step)
    size, unit = (1e3, "k") if step < 1_000_000 else (1e6, "M")
    return f"{step / size:.1f}".removesuffix(".0") + unit


class _Column:
    """The values that fall into one column of dots."""

    __slots__ = ("count", "high", "low", "total")

    def __init__(self, low: float, high: float, total: float, count: int) -> None:
        self.low, self.high, self.total, self.count = low, high, total, count


def _columns(losses: Sequence[Bucket], view: Frame, width: int) -> dict[int, _Column]:
    """Column -> its values. Runs over every bucket in every frame, hence plain comparisons."""
    columns: dict[int, _Column] = {}
    scale = width / (2 * max(1, view.last - view.first))
    twice_first, top, early = 2 * view.first, view.high, view.early
    for first, last, low, high, total, count in losses:
        if low > top and first < early:
            continue  # the first steep fall enters from above; a later peak stays at the upper edge
        at = max(0, min(width - 1, int((first + last - twice_first) * scale)))
        column = columns.get(at)
        if column is None:
            columns[at] = _Column(low, high, total, count)
            continue
        if low < column.low:
            column.low = low
        if high > column.high:
            column.high = high
        column.total += total
        column.count += count
    return columns


def _heights(columns: dict[int, _Column], view: Frame) -> list[tuple[int, float]]:
    """(column, height of the mean), with the columns between two points filled in."""
    ordered = sorted(columns.items())
    means = [view.up(column.total / column.count) for _, column in ordered]
    reach = 0 if len(means) <= _FEW else max(1, len(means) // _SMOOTHED_PARTS)
    points: list[tuple[int, float]] = []
    for index, (at, _) in enumerate(ordered):
        near = means[max(0, index - reach) : index + reach + 1]
        points.append((at, sum(near) / len(near)))
    filled = points[:1]
    for (left, start), (right, end) in pairwise(points):
        for at in range(left + 1, right + 1):
            filled.append((at, start + (end - start) * (at - left) / (right - left)))
    return filled


def _braille(losses: Sequence[Bucket], view: Frame, width: int, rows: int) -> list[list[Cell]]:
    dots_high = 4 * rows
    line = [[0] * width for _ in range(rows)]
    band = [[0] * width for _ in range(rows)]

    def dot(height: float) -> int:
        return min(dots_high - 1, int(height * dots_high))

    def fill(layer: list[list[int]], at: int, bottom: int, top: int) -> None:
        for up in range(bottom, top + 1):
            down = dots_high - 1 - up
            layer[down // 4][at // 2] |= BRAILLE[down % 4][at % 2]

    columns = _columns(losses, view, 2 * width)
    for at, column in columns.items():
        fill(band, at, dot(view.up(column.low)), dot(view.up(column.high)))
    before: int | None = None
    for at, height in _heights(columns, view):
        here = dot(height)
        # Joined to the column before, without covering its dot twice.
        bottom = here if before is None or before >= here else before + 1
        top = here if before is None or before <= here else before - 1
        fill(line, at, min(bottom, here), max(top, here))
        before = here

    def cell(bright: int, dim: int) -> Cell:
        if bright:
            return chr(0x2800 | bright), Palette.curve
        return chr(0x2800 | dim) if dim else " ", Palette.band

    return [
        [cell(*dots) for dots in zip(bright_row, dim_row, strict=True)]
        for bright_row, dim_row in zip(line, band, strict=True)
    ]


def _ascii(losses: Sequence[Bucket], view: Frame, width: int, rows: int) -> list[list[Cell]]:
    plot = [[(" ", Palette.band)] * width for _ in range(rows)]

    def row(height: float) -> int:
        return rows - 1 - min(rows - 1, int(height * rows))

    columns = _columns(losses, view, width)
    for at, column in columns.items():
        for down in range(row(view.up(column.high)), row(view.up(column.low)) + 1):
            plot[down][at] = (":", Palette.band)
    for at, height in _heights(columns, view):
        plot[row(height)][at] = ("*", Palette.curve)
    return plot


def merged(cells: Sequence[Cell]) -> Line:
    """Merge neighbours of one style into one segment: fewer segments are drawn faster."""
    return [Segment("".join(char for char, _ in run), run[0][1]) for run in _runs(cells)]


def _runs(cells: Sequence[Cell]) -> Iterator[Sequence[Cell]]:
    start = 0
    for at in range(1, len(cells) + 1):
        if at == len(cells) or cells[at][1] is not cells[start][1]:
            yield cells[start:at]
            start = at
