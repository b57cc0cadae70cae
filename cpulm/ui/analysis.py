"""One run's report in the terminal: summary, settings, curves, time, timeline, samples, findings."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cpulm.ui.analysis_curves import run_curves
from cpulm.ui.canvas import ASCII, UNICODE, Drawing, Glyphs, Line, Palette, bar, text
from cpulm.ui.console import is_utf8
from cpulm.ui.tables import Trimmed, key_values, rows
from cpulm.ui.terminal_text import fold, harmless
from cpulm.ui.words import TIME_PARTS, typed_value
from cpulm.units import format_duration

if TYPE_CHECKING:
    from cpulm.analysis.report import Finding, Report, Sample, TimelineEntry

_WIDEST, _NARROWEST = 140, 40
_MOST_ENTRIES = 16
_MOST_SAMPLES, _SAMPLE_LINES = 3, 6
_BLANK_LINES = re.compile(r"\n\s*\n")
_BAR = 24
_WEIGHTS = {"warning": Palette.warning, "note": Palette.mark, "good": Palette.good}


def drawing_width(console: Console) -> int:
    """The width of charts in cells: the window's, or that of COLUMNS, within limits; a pipe has no width."""
    has_width = console.is_terminal or console.width <= _WIDEST
    return max(_NARROWEST, min(_WIDEST, console.width)) if has_width else 100


def glyphs_here() -> Glyphs:
    """The glyphs that stdout can show."""
    return UNICODE if is_utf8(sys.stdout) else ASCII


def report_screen(report: Report, width: int, glyphs: Glyphs = UNICODE) -> RenderableType:
    """The whole report; charts are ``width`` cells wide."""
    parts = [part for part in _parts(report, width, glyphs) if part is not None]
    spaced: list[RenderableType] = []
    for part in parts:
        spaced += [part, ""]
    return Group(*spaced[:-1])


def _parts(report: Report, width: int, glyphs: Glyphs) -> Iterator[RenderableType | None]:
    facts = [
        (fact.label, ", ".join(part for part in (fact.value, fact.note) if part)) for fact in report.facts
    ]
    yield key_values(str(report.path), facts)
    yield _changes(report)
    curves = run_curves(report, width, glyphs)
    yield _drawn(curves) if curves else None
    yield _time_parts(report.time_parts, glyphs)
    yield _timeline(report.timeline)
    yield _samples(report.samples, width, glyphs)
    yield findings_list(report.findings)


def _changes(report: Report) -> RenderableType | None:
    if not report.changes:
        return Text("All settings are the preset's.", style="dim") if report.settings else None
    against = report.settings.get("preset") or "default"
    records = [
        (one.key, value_text(one.key, one.preset), value_text(one.key, one.value)) for one in report.changes
    ]
    return rows("Settings that differ", ["setting", str(against), "this run"], records)


def value_text(key: str, value: Any) -> str:
    """The value of the setting ``key`` as written after ``--set``."""
    value = typed_value(key, value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return str(value) if value != "" else '""'


def _time_parts(parts: dict[str, float], glyphs: Glyphs) -> RenderableType | None:
    whole = sum(parts.values())
    if whole <= 0:
        return None
    lines: list[Line] = [[text("Where the time went", Palette.value)]]
    for name, seconds in parts.items():
        words = text(f"  {TIME_PARTS.get(name, name):<22}", Palette.label)
        line = [words, *bar(seconds / whole, _BAR, glyphs)]
        lines.append([*line, text(f" {seconds / whole:>6.1%}  {format_duration(seconds)}")])
    return _drawn(lines)


def _timeline(entries: tuple[TimelineEntry, ...]) -> RenderableType | None:
    if not entries:
        return None
    shown, left_out = list(entries), len(entries) - _MOST_ENTRIES
    if left_out > 0:
        head = _MOST_ENTRIES // 2
        shown = [*entries[:head], *entries[-head:]]
    days = {time.localtime(entry.time)[:3] for entry in shown}
    clock = "%H:%M" if len(days) == 1 else "%a %H:%M"
    table = _list_table(3)
    for number, entry in enumerate(shown):
        if left_out > 0 and number == _MOST_ENTRIES // 2:
            table.add_row("", "", Text(f"... {left_out} more: --json shows all", style="dim"))
        style = "orange3" if entry.kind in ("warning", "rolled_back", "lost") else ""
        when = time.strftime(clock, time.localtime(entry.time))
        table.add_row(f"  {when}", f"step {entry.step:,}", Text(harmless(entry.text), style=style))
    return Trimmed("What happened", table)


def _list_table(columns: int) -> Table:
    """Columns without lines between them; the last one takes the remaining width and wraps."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for _ in range(columns - 1):
        table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _samples(samples: tuple[Sample, ...], width: int, glyphs: Glyphs) -> RenderableType | None:
    chosen = _chosen(samples)
    if not chosen:
        return None
    lines: list[Line] = [[text("Samples", Palette.value)]]
    for sample in chosen:
        lines.append([text(f"  step {sample.step:,}", Palette.label)])
        words = _BLANK_LINES.sub("\n\n", harmless(sample.text, keep_lines=True)).strip("\n")
        for line in fold(words, width - 6, _SAMPLE_LINES) if words.strip() else ["(only blanks)"]:
            lines.append([text(f"  {glyphs.vertical} ", Palette.faint), text(line)])
    return _drawn(lines)


def _drawn(lines: Sequence[Line]) -> RenderableType:
    """The lines, each with a line end; a drawing by itself has none after the last."""
    return Drawing([*lines, []])


def _chosen(samples: tuple[Sample, ...]) -> list[Sample]:
    """The first, the last and some between them, about evenly spaced."""
    if len(samples) <= _MOST_SAMPLES:
        return list(samples)
    last = len(samples) - 1
    return [samples[round(number * last / (_MOST_SAMPLES - 1))] for number in range(_MOST_SAMPLES)]


def findings_list(findings: Iterable[Finding]) -> RenderableType | None:
    """The findings, each after its weight."""
    table = _list_table(2)
    for finding in findings:
        weight = Text(f"  {finding.weight}", style=_WEIGHTS[finding.weight])
        table.add_row(weight, Text(harmless(finding.text)))
    return Trimmed("Findings", table) if table.row_count else None
