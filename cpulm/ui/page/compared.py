"""Several runs compared on the page: best first, what differs, and its effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cpulm.ui.page.payload import plain, printable
from cpulm.units import format_count, format_duration

if TYPE_CHECKING:
    from cpulm.analysis.compare import ComparedRun, RunComparison

MOST_RUNS = 100
"""Runs on one page; more curves cannot be distinguished, and the page would be too large for an email."""

_SCORE = ("bits per byte", "behind")
_AFTER = ("loss", "steps", "tokens", "time", "tokens/s", "parameters")
"""The columns before and after the settings that differ: a phone shows only the first few."""


def compared(comparison: RunComparison) -> dict[str, Any]:
    """The title, the notes as findings, and the tables of the page, all as texts."""
    rows = comparison.rows[:MOST_RUNS]
    notes = list(comparison.notes)
    if len(comparison.rows) > MOST_RUNS:
        notes.append(f"This page shows the best {MOST_RUNS} of {len(comparison.rows)} runs.")
    columns = [{"title": "run", "kind": "key"}, *({"title": title, "kind": "number"} for title in _SCORE)]
    columns += [{"title": key} for key in comparison.keys]
    columns += [{"title": title, "kind": "number"} for title in _AFTER]
    return {
        "title": f"{len(comparison.rows)} runs compared",
        "about": "Sorted by bits per byte of the best validation: lower is better, for any tokenizer.",
        "findings": [{"weight": "note", "text": printable(note)} for note in notes],
        "columns": columns,
        "rows": [_cells(row, comparison.keys) for row in rows],
        "effects": [
            [
                effect.key,
                _shown(effect.key, effect.value),
                str(effect.runs),
                f"{effect.mean_bits_per_byte:.4f}",
                f"{effect.best_bits_per_byte:.4f}",
            ]
            for effect in comparison.effects
        ],
    }


def _bits_per_byte(row: ComparedRun) -> str:
    if row.bits_per_byte is None:
        return "–"
    return "not comparable" if row.text_lost else f"{row.bits_per_byte:.4f}"


def _cells(row: ComparedRun, keys: tuple[str, ...]) -> list[str]:
    return [
        printable(row.name),
        _bits_per_byte(row),
        "–" if row.behind is None else f"{row.behind:+.4f}" if row.behind else "best",
        *(_shown(key, row.values.get(key)) for key in keys),
        "–" if row.loss is None else f"{row.loss:.4f}",
        f"{row.steps:,}",
        format_count(row.tokens),
        format_duration(row.seconds),
        "–" if row.tokens_per_second is None else format_count(row.tokens_per_second),
        "–" if row.params_total is None else format_count(row.params_total),
    ]


def _shown(key: str, value: Any) -> str:
    found = plain(key, value)
    return "–" if found is None or found == "" else str(found)
