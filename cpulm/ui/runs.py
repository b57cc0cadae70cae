"""Runs as a table, with as many columns as fit."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import RenderableType

from cpulm.ui.tables import rows
from cpulm.ui.terminal_text import figure, harmless
from cpulm.units import format_bytes

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_BETWEEN = 3
"""Cells between two columns, at most."""


@dataclass(frozen=True)
class RunRow:
    """One row of the table; None means unknown."""

    run: str
    state: str
    step: int | None
    steps: int | None
    progress: float | None
    best_loss: float | None
    best_bits_per_byte: float | None
    seconds_ago: float | None
    preset: str | None
    text_lost: float = 0.0
    generation: int = 1
    generations: int = 1
    disk_bytes: int = 0
    label: str = ""
    note: str = ""


_COLUMNS: dict[str, Callable[[RunRow], str]] = {
    "run": lambda row: row.run,
    "state": lambda row: row.state,
    "step": lambda row: _step(row),
    "": lambda row: "-" if row.progress is None else f"{int(100 * row.progress)}%",
    "best loss": lambda row: "-" if row.best_loss is None else figure(row.best_loss),
    "bits/byte": lambda row: _bits_per_byte(row),
    "seen": lambda row: _age(row.seconds_ago),
    "disk": lambda row: format_bytes(row.disk_bytes),
    "preset": lambda row: row.preset or "-",
    "name": lambda row: row.label,
    "note": lambda row: _one_line(row.note),
}
_DISPENSABLE = ("note", "preset", "bits/byte", "disk", "name")
"""The columns dropped first in a narrow window; the run's path is never cut."""
_LONGEST_NOTE = 40


def runs_table(records: Sequence[RunRow], width: int) -> RenderableType:
    """The runs, one line each, in ``width`` cells."""
    cells = {name: [harmless(value(row)) for row in records] for name, value in _COLUMNS.items()}
    for name in _DISPENSABLE:
        if _natural_width(cells) > width or not any(cells[name]):
            del cells[name]
    return rows("", list(cells), zip(*cells.values(), strict=True))


def _natural_width(cells: dict[str, list[str]]) -> int:
    widths = [max(cell_len(text) for text in [name, *column]) for name, column in cells.items()]
    return sum(widths) + _BETWEEN * (len(widths) - 1)


def _step(row: RunRow) -> str:
    if row.step is None:
        return "-"
    step = f"{row.step:,}" if row.steps is None else f"{row.step:,}/{row.steps:,}"
    return f"{step}, gen {row.generation}/{row.generations}" if row.generations > 1 else step


def _age(seconds: float | None) -> str:
    """``now``, ``12s ago``, ``3h ago``: one unit, whole numbers."""
    if seconds is None:
        return "-"
    if seconds < 5:
        return "now"
    unit = next(unit for unit, length in _UNITS.items() if seconds >= length)
    return f"{int(seconds // _UNITS[unit])}{unit} ago"


def _bits_per_byte(row: RunRow) -> str:
    if row.best_bits_per_byte is None:
        return "-"
    return "not comparable" if row.text_lost else figure(row.best_bits_per_byte)


def _one_line(note: str) -> str:
    return textwrap.shorten(note, _LONGEST_NOTE, placeholder="...")
