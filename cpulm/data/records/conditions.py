"""Conditions that choose rows, such as ``grade>=6``."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cpulm.data.records.values import text_of, value_of
from cpulm.errors import SettingsError

_OPERATOR = re.compile("<=|>=|!=|==|=|<|>")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """Compares a column with a value: as numbers if both are, else as text."""

    column: str
    compare: Callable[[Any, Any], bool]
    value: str
    number: float | None

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether the row meets the condition. A null is compared as an empty text.

        Raises:
            MissingError: if the row has no such column.
        """
        return self.chooses(value_of(row, self.column))

    def chooses(self, value: Any) -> bool:
        """Whether a row with this value of the column meets the condition."""
        if self.number is not None and (number := _number(value)) is not None:
            return self.compare(number, self.number)
        return self.compare("" if value is None else text_of(value), self.value)


def parse_condition(text: str) -> Condition:
    """Parse ``COLUMN OPERATOR VALUE``; a value may stand in quotes.

    Raises:
        SettingsError: if it is not of this form.
    """
    found = _OPERATOR.search(text)
    column = text[: found.start()].strip() if found else ""
    if found is None or not column:
        raise SettingsError(
            f"data.where = {text!r}: this is not a condition",
            "compare a column with a value, such as 'grade>=6' or 'language=en'",
        )
    value = text[found.end() :].strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return Condition(column, _COMPARE[found[0]], value, _number(value))


def _number(value: Any) -> float | None:
    """The number that a value is or is the text of; NaN equals nothing and may be a name: it stays text."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number
