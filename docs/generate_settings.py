"""Writes docs/settings.md from the code: ``python docs/generate_settings.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cpulm.settings import Settings

PAGE = Path(__file__).with_name("settings.md")

HEAD = """\
# Settings

These settings describe a run. Each source overrides those above it:

1. the defaults below,
2. a preset: `--preset tiny`,
3. a file: `--config my.yaml`, in the form that `cpulm train --print-config` prints,
4. the environment: `CPULM_` and the name in capitals, with two underscores for the point, such as
   `CPULM_TRAIN__LR=3e-4`; an empty variable counts as not given,
5. `--set train.lr=3e-4`, as often as needed,
6. the options of `cpulm train`, such as `--steps 500`.

A horizon (`train.steps`, `train.epochs`, `train.tokens` or `train.max_time`) replaces a horizon of any
kind from a source above it. A key that does not exist is an error that names the nearest one. `null` unsets a
setting whose default is *unset*. A text is used as written; in quotes it is read as YAML, so `"a\\nb"` has a
line break. A list is written `[a, b]`.

The resolved settings of a run are stored in its folder as `settings.yaml`; `cpulm train --config` reads that
file and trains the same run again.

This page is generated from the code by `python docs/generate_settings.py`.
"""

LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
KINDS = {
    "boolean": "`true` or `false`",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "array": "list of texts",
}


def page() -> str:
    """The whole page in Markdown."""
    parts = [HEAD]
    for name, spec in Settings.model_fields.items():
        if isinstance(spec.default, BaseModel):
            parts.append(_section(name, spec.default))
    return "\n".join(parts)


def _section(name: str, section: BaseModel) -> str:
    lines = [f"## {name}", "", _one_line(section.__doc__ or ""), ""]
    lines += ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for key, schema in type(section).model_json_schema()["properties"].items():
        cells = [f"`{name}.{key}`", _default(getattr(section, key)), _values(schema)]
        lines.append(f"| {' | '.join(cells)} | {_in_a_cell(schema['description'])} |")
    return "\n".join([*lines, ""])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _in_a_cell(text: str) -> str:
    """Text for a cell of a table, whose borders are bars."""
    return _one_line(text).replace("|", "\\|")


def _default(value: Any) -> str:
    if value is None:
        return "*unset*"
    if value in ("", []):
        return "*empty*"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{', '.join(value)}]`"
    return f"`{value}`"


def _values(schema: dict[str, Any]) -> str:
    """The values a setting accepts, from its JSON schema."""
    kind = schema.get("anyOf", [schema])[0]
    if "enum" in kind:
        return ", ".join(f"`{choice}`" for choice in kind["enum"])
    limits = [f"{sign} {_number(kind[word])}" for word, sign in LIMITS.items() if word in kind]
    return " ".join([KINDS[kind["type"]], ", ".join(limits)]).strip()


def _number(limit: float) -> str:
    return f"{int(limit):,}" if limit == int(limit) else str(limit)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
