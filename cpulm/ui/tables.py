"""Tables: aligned in a terminal of 80 columns, plain and unwrapped in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cpulm.ui.terminal_text import harmless


def key_values(title: str, pairs: Iterable[tuple[str, object]]) -> RenderableType:
    """A titled list of names and values, one per line; long values are wrapped.

    A value of None is left out, so callers need not check what is known.
    """
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            table.add_row(f"  {harmless(name)}", Text(harmless(str(value), keep_lines=True)))
    return Trimmed(title, table)


def rows(title: str, columns: Sequence[str], records: Iterable[Sequence[object]]) -> RenderableType:
    """A titled table; a column whose every value starts with a digit is aligned to the right.

    None is shown as a dash.
    """
    cells = [["-" if value is None else harmless(str(value)) for value in record] for record in records]
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        numbers = all(row[index][:1] in "0123456789-+" for row in cells)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(value) for value in row))
    return Trimmed(title, table)


@dataclass(frozen=True)
class Trimmed:
    """A title and a table, without trailing blanks."""

    title: str
    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(harmless(self.title), style="bold")
        for line in console.render_lines(self.table, options, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                last = line.pop()
                yield from line
                yield Segment(last.text.rstrip(), last.style)
            yield Segment.line()
