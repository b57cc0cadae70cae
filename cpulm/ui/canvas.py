"""Lines of styled text with exact widths: boxes, bars, columns, and the palette of the dashboard.

The dashboard is drawn from these and not with rich's tables and layouts, because a frame must be cheap:
it is drawn while the model trains on the same cores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from cpulm.ui.terminal_text import written_in

Line = list[Segment]


class Palette:
    """Calm colours for dark and light backgrounds; terminals with fewer colours use the nearest."""

    plain = Style()
    label = Style(color="grey58")
    faint = Style(color="grey42")
    value = Style(bold=True)
    title = Style(color="steel_blue1", bold=True)
    curve = Style(color="steel_blue1")
    band = Style(color="grey39")
    mark = Style(color="light_goldenrod2", bold=True)
    good = Style(color="dark_sea_green3", bold=True)
    warning = Style(color="orange3")
    bad = Style(color="indian_red1", bold=True)
    bar = Style(color="steel_blue1")
    rest = Style(color="grey35")


class Glyphs(NamedTuple):
    """The characters that boxes, bars and curves are made of."""

    left_top: str
    right_top: str
    left_bottom: str
    right_bottom: str
    horizontal: str
    vertical: str
    tick_left: str
    tick_down: str
    axis_corner: str
    bar: str
    half_bar: str
    rest: str
    gauge: str
    gauge_rest: str
    validation: str
    best: str
    dot: str
    ellipsis: str
    done: str
    degree: str
    up: str
    braille: bool


UNICODE = Glyphs._make([*"╭╮╰╯─│┤┬└━╸─█░◆★·…✓°↑", True])
ASCII = Glyphs._make([*"++++-||++==-#.o*|~+ ^", False])


def text(content: str, style: Style = Palette.plain) -> Segment:
    """A piece of a line; ``content`` holds no control characters."""
    return Segment(content, style)


def line_cells(line: Line) -> int:
    """Width of the line in cells."""
    return sum(cell_len(segment.text) for segment in line)


def exactly(line: Line, width: int) -> Line:
    """The line in exactly ``width`` cells: padded with blanks, or cut."""
    room, shown = width, []
    for segment in line:
        cells = cell_len(segment.text)
        if cells > room:
            shown.append(Segment(set_cell_size(segment.text, room), segment.style))
            return shown
        shown.append(segment)
        room -= cells
    if room:
        shown.append(Segment(" " * room))
    return shown


def apart(left: Line, right: Line, width: int) -> Line:
    """``left`` and ``right`` at the two ends of a line; ``left`` is cut if both do not fit."""
    room = max(0, width - line_cells(right))
    return exactly([*exactly(left, room), *right], width)


def block(lines: Sequence[Line], width: int, height: int) -> list[Line]:
    """Exactly ``height`` lines of exactly ``width`` cells."""
    shown = [exactly(line, width) for line in lines[:height]]
    return shown + [exactly([], width) for _ in range(height - len(shown))]


def box(
    title: str, lines: Sequence[Line], width: int, height: int, glyphs: Glyphs, note: str = ""
) -> list[Line]:
    """``lines`` in a frame of ``width`` by ``height`` cells, title at the top left, note at the top right."""
    note = f" {note} " if note and cell_len(title) + cell_len(note) + 8 <= width else ""
    fill = max(0, width - 5 - cell_len(title) - cell_len(note))
    top = [
        Segment(f"{glyphs.left_top}{glyphs.horizontal} ", Palette.faint),
        Segment(title, Palette.title),
        Segment(" " + glyphs.horizontal * fill, Palette.faint),
        Segment(note, Palette.label),
        Segment(glyphs.right_top, Palette.faint),
    ]
    side = Segment(glyphs.vertical, Palette.faint)
    body = [[side, *line, side] for line in block(lines, width - 2, height - 2)]
    bottom = [
        Segment(glyphs.left_bottom + glyphs.horizontal * (width - 2) + glyphs.right_bottom, Palette.faint)
    ]
    return [exactly(top, width), *body, exactly(bottom, width)]


def beside(left: Sequence[Line], right: Sequence[Line]) -> list[Line]:
    """Two blocks of equal height, side by side."""
    return [[*one, *other] for one, other in zip(left, right, strict=True)]


def bar(fraction: float, width: int, glyphs: Glyphs, style: Style = Palette.bar) -> Line:
    """A thin progress bar of exactly ``width`` cells, to half a cell."""
    halves = round(2 * width * min(1.0, max(0.0, fraction)))
    full = glyphs.bar * (halves // 2) + (glyphs.half_bar if halves % 2 else "")
    return [Segment(full, style), Segment(glyphs.rest * (width - len(full)), Palette.rest)]


def gauge(fraction: float, width: int, glyphs: Glyphs, style: Style = Palette.bar) -> Line:
    """A thick bar of exactly ``width`` cells for a share that is in use."""
    full = round(width * min(1.0, max(0.0, fraction)))
    return [Segment(glyphs.gauge * full, style), Segment(glyphs.gauge_rest * (width - full), Palette.rest)]


@dataclass(frozen=True)
class Drawing:
    """Finished lines as something that rich prints."""

    lines: Sequence[Line]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return self._segments(options.encoding)

    def _segments(self, encoding: str) -> Iterable[Segment]:
        """Replace what the stream cannot encode by one character each, so that frames stay intact."""
        for number, line in enumerate(self.lines):
            if number:
                yield Segment.line()
            if encoding.startswith("utf"):
                yield from line
            else:
                yield from (Segment(written_in(part.text, encoding), part.style) for part in line)
