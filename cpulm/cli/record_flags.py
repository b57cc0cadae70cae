"""Options of ``cpulm generate`` for records and rules: NAME=VALUE and the like, parsed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cpulm.errors import SettingsError

RECORDS, RULES = "Records: text from rows of a table", "Rules that every text obeys"

Field = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="NAME=VALUE",
        help="Write records with this value; the model fills in the other fields. Repeatable.",
        rich_help_panel=RECORDS,
    ),
]
Fields = Annotated[
    bool,
    typer.Option(
        "--fields",
        help="Show which values of which fields the model has seen, and how often.",
        rich_help_panel=RECORDS,
    ),
]
Rows = Annotated[
    bool,
    typer.Option("--rows", help="Print CSV with the columns of the training data.", rich_help_panel=RECORDS),
]
Regex = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="The text matches this expression.", rich_help_panel=RULES),
]
Grammar = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The text follows this Lark grammar.", rich_help_panel=RULES),
]
JsonSchema = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The text is JSON of this schema.", rich_help_panel=RULES),
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--values", metavar="NAME=A,B,...", help="A field is one of these; repeatable.", rich_help_panel=RULES
    ),
]
Unique = Annotated[
    list[str] | None,
    typer.Option(
        "--unique", metavar="NAME", help="No item of a field's list comes twice.", rich_help_panel=RULES
    ),
]
Count = Annotated[
    list[str] | None,
    typer.Option(
        "--count",
        metavar="NAME=MIN:MAX",
        help="Least and most items of a field's list; either may be empty.",
        rich_help_panel=RULES,
    ),
]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--rules",
        metavar="FILE.py:FUNCTION",
        help="A Python function says what may follow; repeatable.",
        rich_help_panel=RULES,
    ),
]


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """The values of a repeated option ``NAME=VALUE``.

    Raises:
        SettingsError: if one is not of this form, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SettingsError(f"{option} {text} is not NAME=VALUE", f"such as {option} grade=7A")
        if name.strip() in found:
            raise SettingsError(f"{option} {name.strip()} is given twice", "keep one of them")
        found[name.strip()] = value
    return found


def field_rules(
    values: Sequence[str] | None, unique: Sequence[str] | None, count: Sequence[str] | None
) -> dict[str, Any]:
    """The rules about fields, by their names in ``cpulm.generation.rules.requested.RulesRequest``."""
    return {
        "values": {name: one.split(",") for name, one in pairs("--values", values).items()},
        "unique": tuple(unique or ()),
        "counts": counts(count),
    }


def counts(given: Sequence[str] | None) -> dict[str, tuple[int, int | None]]:
    """Least and most items by field, of ``NAME=MIN:MAX``.

    Raises:
        SettingsError: if one is not of this form.
    """
    found = {}
    for name, value in pairs("--count", given).items():
        low, colon, high = value.partition(":")
        try:
            least, most = int(low or 0), int(high) if high else None
        except ValueError:
            least, most = -1, None
        if not colon or least < 0 or (most is not None and most < max(1, least)):
            raise SettingsError(
                f"--count {name}={value} is not MIN:MAX", "such as --count holds=4:12, 4: or :12"
            )
        found[name] = (least, most)
    return found
