"""The form in which a template puts a list into text: ``list``, after ``each`` or alone, and the way back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple


class ItemForm(NamedTuple):
    """How the items of a list stand in text.

    Attributes:
        separator: between two items.
        inner: between the parts of an item, unless it has a template.
        pattern: an expression for one item with a group for each of its parts, if it has a template.
        words: in one item, if the separator is counted between them.
    """

    separator: str = " "
    inner: str = ","
    pattern: str = ""
    words: int = 1

    def with_template(self, parts: Sequence[str | None]) -> ItemForm:
        """The form of items that stand in a template of these literal parts, None for a value."""
        pattern = "".join("(.+?)" if part is None else re.escape(part) for part in parts)
        words = 1 + sum(part.count(self.separator) for part in parts if part is not None and self.separator)
        return self._replace(pattern=pattern, words=words)

    def parsed(self, text: str) -> str:
        """The list as JSON, from which a template makes ``text`` again; ``text`` if it is no such list."""
        if not self.pattern:
            rows = [part.split(self.inner) if self.inner else [part] for part in _split(text, self.separator)]
        else:
            end = re.escape(self.separator)
            if re.fullmatch(f"(?:{self.pattern}(?:{end}|$))*", text, re.S) is None:
                return text
            found = re.finditer(f"{self.pattern}(?:{end}|$)", text, re.S)
            rows = [list(one.groups()) for one in found]
        items = [[_number(part) for part in row] for row in rows]
        single = all(len(item) == 1 for item in items)
        return json.dumps([item[0] for item in items] if single else items, ensure_ascii=False)


def _split(text: str, separator: str) -> list[str]:
    if not text:
        return []
    return text.split(separator) if separator else list(text)


def _number(text: str) -> Any:
    return int(text) if re.fullmatch(r"-?(0|[1-9][0-9]{0,15})", text) else text
