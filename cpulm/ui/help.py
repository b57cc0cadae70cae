"""The help of a command as one page: usage, what it does, examples, and its options in panels."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

_WIDEST = 100
"""Columns: longer lines are hard to read."""
_NAMES = 26
"""Columns of names; a longer name has the line to itself."""
_MARKED = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*")


@dataclass(frozen=True)
class HelpRow:
    """An argument, an option or a command, and what it is for."""

    name: str
    meaning: str


@dataclass(frozen=True)
class HelpPanel:
    """Rows under a title, or only the ``names`` of what another page explains."""

    title: str
    rows: Sequence[HelpRow]
    names: str = ""


def help_page(usage: str, about: str, panels: Sequence[HelpPanel], width: int) -> Text:
    """The page, in lines of at most ``width`` columns.

    Args:
        about: paragraphs between blank lines; indented ones are shown line by line, as they are. Words in
            backticks and between stars are set apart.
    """
    width = min(width, _WIDEST)
    lines = [Text.assemble(("Usage: ", "bold"), usage), Text()]
    for paragraph in _paragraphs(about):
        lines += [*_paragraph(paragraph, width), Text()]
    for panel in panels:
        lines.append(Text(panel.title, style="bold"))
        for row in panel.rows:
            lines += _row(row, width)
        for line in textwrap.wrap(panel.names, width - 2, break_on_hyphens=False):
            lines.append(Text(f"  {line}", style="cyan"))
        lines.append(Text())
    return Text("\n").join(lines[:-1])


def _paragraphs(about: str) -> Iterator[list[str]]:
    """Lines of each paragraph; indented paragraphs that follow each other are one."""
    found: list[list[str]] = []
    for block in re.split(r"\n\s*\n", about.strip("\n")):
        lines = block.splitlines()
        if found and lines[0].startswith("    ") and found[-1][-1].startswith("    "):
            found[-1] += lines
        else:
            found.append(lines)
    yield from found


def _paragraph(lines: list[str], width: int) -> list[Text]:
    if lines[0].startswith("    "):
        return [Text(f"  {line.strip()}", style="cyan") for line in lines]
    return _wrapped(" ".join(line.strip() for line in lines), width)


def _row(row: HelpRow, width: int) -> list[Text]:
    name = Text.assemble("  ", (row.name, "cyan"))
    meaning = _wrapped(row.meaning, width - _NAMES - 1)
    lines = [] if len(name) < _NAMES or not meaning else [name]
    for number, line in enumerate(meaning):
        head = name.copy() if number == 0 and not lines else Text()
        head.pad_right(_NAMES - len(head))
        lines.append(head + line)
    return lines or [name]


def _wrapped(words: str, width: int) -> list[Text]:
    """``words`` in lines, with what is between marks set apart and the marks themselves gone."""
    spans: list[tuple[int, int, str]] = []
    plain, at = "", 0
    for match in _MARKED.finditer(words):
        plain += words[at : match.start()]
        kept = match[1] or match[2] or match[3]
        spans.append((len(plain), len(plain) + len(kept), "cyan" if match[1] else "bold"))
        plain, at = plain + kept, match.end()
    plain += words[at:]
    lines, begin = [], 0
    for line in textwrap.wrap(plain, width, break_long_words=False, break_on_hyphens=False):
        begin = plain.index(line, begin)
        text = Text(line)
        for first, last, style in spans:
            text.stylize(style, max(0, first - begin), max(0, last - begin))
        lines.append(text)
        begin += len(line)
    return lines
