"""The values of a row: found by name, and turned into text, numbers and lists."""

from __future__ import annotations

import ast
import difflib
import itertools
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

import msgspec

_LARGEST_LITERAL = 1 << 16
"""Characters of a list that is written as text; what is longer is not parsed."""
_DEEPEST_LITERAL = 32
_BRACKETS = re.compile(r"[\[\](){}]")
_MOST_COLUMNS = 1000
"""Columns that a message is made from: finding the nearest of 100,000 names takes a second."""


class RowError(ValueError):
    """A row cannot be used; the reader adds where it is. ``hint`` is what to do, if it is not the usual."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class MissingError(RowError):
    """A row has no such column."""


def value_of(row: Mapping[str, Any], name: str) -> Any:
    """The value of the column ``name``, or of the nested field that ``a.b.0`` leads to.

    Raises:
        MissingError: if there is none; it names those that exist, the nearest first.
    """
    if name in row:
        return row[name]
    value: Any = row
    parts = name.split(".")
    for place, part in enumerate(parts):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and len(part) < 10 and int(part) < len(value):
            value = value[int(part)]
        else:
            raise MissingError(*_missing_in(row, parts, place, value))
    return value


def _missing_in(row: Mapping[str, Any], parts: list[str], place: int, value: Any) -> tuple[str, str]:
    """What to say if the part at ``place`` of a name is not in ``value``, to which those before it lead."""
    name, outer = ".".join(parts), ".".join(parts[:place])
    if not place:
        return missing(name, row)
    if isinstance(value, Mapping):
        what, near = missing(parts[place], value)
        return f"has no field {name!r}: {outer!r} {what}", near
    return f"has no field {name!r}: {outer!r} is {shown(value)}", ""


def missing(name: str, columns: Iterable[str], noun: str = "field") -> tuple[str, str]:
    """What to say if there is no ``name`` among the columns, and a hint if one is near."""
    there = list(itertools.islice(columns, _MOST_COLUMNS))
    near = difflib.get_close_matches(name, there, n=1)
    listed = ", ".join(map(repr, there))[:200] or "none"
    return f"has no {noun} {name!r}: it has {listed}", f"did you mean {near[0]!r}?" if near else ""


def text_of(value: Any) -> str:
    """The text of a value: as it is, or as JSON has it.

    Raises:
        RowError: if it is null.
    """
    if isinstance(value, str):
        return value
    if type(value) is int:  # which takes json ten times as long
        return str(value)
    if value is None:
        raise RowError("the value is null", "give it one: {name|default:'none'}")
    return json.dumps(value, ensure_ascii=False, default=str)


def number_in(value: Any) -> float:
    """The number that a value is, or is the text of.

    Raises:
        RowError: if it is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise RowError(f"{shown(value)} is not a number") from None


def list_in(value: Any) -> list[Any]:
    """The list that a value is, or is the text of, in JSON or as a Python literal. No code is run.

    Raises:
        RowError: if it is none, or is longer or deeper than such a text may be.
    """
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    raise RowError(f"{shown(value)} is not a list")


def _parsed(text: str) -> Any:
    if len(text) > _LARGEST_LITERAL:
        raise RowError(f"a list of {len(text):,} characters is too long: {_LARGEST_LITERAL:,} are read")
    if (deepest := _depth(text)) > _DEEPEST_LITERAL:
        raise RowError(f"{shown(text)} is nested {deepest} deep: {_DEEPEST_LITERAL} are read")
    for decode in (msgspec.json.decode, json.loads):  # a fifth of the time; also takes NaN and the like
        try:
            return decode(text)
        except ValueError:
            pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise RowError(f"{shown(text)} is not a list") from None


def _depth(text: str) -> int:
    """How deep brackets are nested; where there are few of them, how many there are."""
    if (count := sum(map(text.count, "[({"))) <= _DEEPEST_LITERAL:
        return count
    return max(accumulate(1 if bracket in "[({" else -1 for bracket in _BRACKETS.findall(text)))


def shown(value: Any) -> str:
    """A value in a message, not too long."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
