r"""Templates: text with the columns of a row put in, such as ``{grade|upper}: {holds|list:' '}``.

A template is parsed once. Nothing in it is evaluated: a column is looked up by its name, and a filter is
one of :data:`FILTERS`. ``{{`` and ``}}`` are braces; ``\n``, ``\t`` and ``\\`` mean what they do in Python.
``<|name|>`` is a special token.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

from cpulm.data.marks import END_OF_TEXT, LOSS_OFF, LOSS_ON, SPECIAL, Mark
from cpulm.data.records.item_form import ItemForm
from cpulm.data.records.values import MissingError, RowError, list_in, number_in, text_of, value_of
from cpulm.errors import SettingsError

_ARGUMENT = r"""'[^']*'|"[^"]*"|[^:|{}'"]*"""
_FILTER = re.compile(rf"\|\s*(\w+)((?::(?:{_ARGUMENT}))*)\s*")
_PLACEHOLDER = re.compile(rf"\{{([^{{}}|]+)((?:{_FILTER.pattern})*)\}}")
_BRACES = re.compile(r"\{\{|\}\}|[{}]")
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}

_REPEATED = 1 / 2
"""A column with fewer different values for a value is changed once for each of them."""

_KNOWN_ITEMS = 4096
"""Items of lists whose text is remembered: to find it takes a tenth of the time of making it."""
_WRITTEN_ALIKE = frozenset({int, str})

Change = Callable[[Any], Any]
"""What a filter does to a value; raises RowError if the value does not fit."""


class Filter(NamedTuple):
    """A filter: how many arguments it takes, and what it does with them."""

    least: int
    most: int
    make: Callable[..., Change]


@dataclass(frozen=True)
class Placeholder:
    """Where the value of a column goes.

    Attributes:
        column: its name.
        changes: the filters that are applied to the value, in this order.
        default: the text if the row has no value; None if that is an error.
        items: the form of its list; None if it is none.
    """

    column: str
    changes: tuple[Change, ...]
    default: str | None
    items: ItemForm | None = None

    def text(self, row: Mapping[str, Any]) -> str:
        try:
            value = value_of(row, self.column)
        except MissingError:
            if self.default is None:
                raise
            value = None
        return self._text_of(value)

    def _text_of(self, value: Any) -> str:
        if self.default is not None and (value is None or value == ""):
            return self.default
        try:
            for change in self.changes:
                value = change(value)
            return text_of(value)
        except RowError as error:
            raise RowError(f"column {self.column!r}: {error}", error.hint) from None

    def texts(self, values: Sequence[Any]) -> list[str]:
        """The text of each of ``values``, those of the column in many rows; raises RowError."""
        if set(map(type, values)) != {str}:
            return [self._text_of(value) for value in values]
        if not self.changes and self.default is None:
            return list(values)
        different = set(values)
        if len(different) > _REPEATED * len(values):
            return [self._text_of(value) for value in values]
        found = {value: self._text_of(value) for value in different}
        return [found[value] for value in values]


class SpecialToken(NamedTuple):
    """Where a special token goes, which is not text."""

    name: str


class Filled(NamedTuple):
    """A template with the values of a row.

    Attributes:
        values: the text of each placeholder, in their order.
        marks: of special tokens and of the loss.
        weight: how often the row is used.
    """

    text: str
    values: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Template:
    """A parsed template: literal text, special tokens and places.

    Attributes:
        loss_after: the column after whose value the loss counts; empty: it counts everywhere.
    """

    parts: tuple[str | SpecialToken | Placeholder, ...]
    loss_after: str = ""

    def fill(self, row: Mapping[str, Any]) -> Filled:
        """Put the values of ``row`` in their places.

        Raises:
            RowError: if a column is missing, or a value does not fit its filters.
        """
        texts: list[str] = []
        values: list[str] = []
        marks = [Mark(0, LOSS_OFF)] if self.loss_after else []
        size = 0
        for part in self.parts:
            if isinstance(part, SpecialToken):
                marks.append(Mark(size, part.name))
                continue
            text = part if isinstance(part, str) else part.text(row)
            texts.append(text)
            size += len(text)
            if isinstance(part, Placeholder):
                values.append(text)
                if part.column == self.loss_after:
                    marks.append(Mark(size, LOSS_ON))
        return Filled("".join(texts), tuple(values), tuple(marks))

    def text(self, row: Mapping[str, Any]) -> str:
        """The text of a row alone; raises as :meth:`fill`."""
        return self.fill(row).text

    @property
    def has_marks(self) -> bool:
        """Whether there is more than text in its documents."""
        return bool(self.loss_after or self.special_tokens)

    def pieces(self, columns: Mapping[str, Sequence[Any]]) -> list[Iterable[str]]:
        """For each part, unless it is a mark, its text in many rows, of which the columns are given.

        Raises:
            RowError: as :meth:`fill`.
        """
        return [
            repeat(part) if isinstance(part, str) else part.texts(columns[part.column])
            for part in self.parts
            if not isinstance(part, SpecialToken)
        ]

    @property
    def special_tokens(self) -> list[str]:
        """The names of its special tokens, each once."""
        return list(dict.fromkeys(part.name for part in self.parts if isinstance(part, SpecialToken)))

    def required_of(self, there: Iterable[str]) -> list[str]:  # noqa: ARG002 - of conversations it depends
        """The columns that every row must have, in the template's order."""
        return list(dict.fromkeys(part.column for part in self.places if part.default is None))

    @property
    def columns(self) -> list[str]:
        """All columns that it names."""
        return [part.column for part in self.places]

    @property
    def places(self) -> list[Placeholder]:
        """Its placeholders, in their order."""
        return [part for part in self.parts if isinstance(part, Placeholder)]


def parse_template(template: str, loss_after: str = "") -> Template:
    """Parse a template.

    Args:
        loss_after: as of :class:`Template`.

    Raises:
        SettingsError: naming what in it is not understood.
    """
    parts: list[str | SpecialToken | Placeholder] = []
    begin = 0
    while brace := _BRACES.search(template, begin):
        parts += _literal(template, template[begin : brace.start()])
        begin = brace.end()
        if len(brace[0]) == 2:
            parts.append(brace[0][0])
            continue
        place = _PLACEHOLDER.match(template, brace.start())
        if place is None:
            raise _error(template, f"cannot be read from {template[brace.start() :][:20]!r} on", _SYNTAX)
        parts.append(_place(template, place[1].strip(), place[2]))
        begin = place.end()
    parts += _literal(template, template[begin:])
    columns = [part.column for part in parts if isinstance(part, Placeholder)]
    if not columns:
        raise _error(template, "names no column", _SYNTAX)
    if loss_after and loss_after not in columns:
        raise SettingsError(
            f"data.loss_after = {loss_after!r}: the template has no such column",
            f"name one of {', '.join(map(repr, columns))}",
        )
    return Template(tuple(part for part in parts if part != ""), loss_after)


def _literal(template: str, text: str) -> list[str | SpecialToken | Placeholder]:
    """Literal text, with its special tokens."""
    parts: list[str | SpecialToken | Placeholder] = []
    begin = 0
    for found in SPECIAL.finditer(text):
        if found[0] == END_OF_TEXT:
            raise _error(
                template, f"{END_OF_TEXT} ends a document within its text", "leave it out: it is added"
            )
        parts += [unescaped(text[begin : found.start()]), SpecialToken(found[0])]
        begin = found.end()
    return [*parts, unescaped(text[begin:])]


def unescaped(text: str) -> str:
    r"""Replace ``\n``, ``\t`` and ``\\``, which a command line cannot hold or a shell takes away."""
    return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], text)


_SYNTAX = "write columns as {name} or {name|filter:argument}, and braces as {{ and }}"


def _place(template: str, column: str, filters: str) -> Placeholder:
    changes: list[Change] = []
    default: str | None = None
    items: ItemForm | None = None
    each: list[str | None] | None = None
    for found in _FILTER.finditer(filters):
        name = found[1]
        given = [_unquoted(argument) for argument in re.findall(rf":({_ARGUMENT})", found[2])]
        if name not in FILTERS:
            near = difflib.get_close_matches(name, FILTERS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise _error(template, f"there is no filter {name!r}", f"{hint}Filters: {', '.join(FILTERS)}")
        least, most, make = FILTERS[name]
        if not least <= len(given) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise _error(template, f"{name} takes {wanted} arguments, not {len(given)}", _SYNTAX)
        try:
            changes.append(make(*given))
        except ValueError as error:
            raise _error(template, f"{name}: {error}", _SYNTAX) from error
        default = given[0] if name == "default" else default
        if name == "each":
            each = [part if isinstance(part, str) else None for part in parse_template(given[0]).parts]
        if name == "list":
            outer, inner = [*given, *(" ", ",")[len(given) :]]
            form = ItemForm(outer, inner)
            items = form if each is None else form.with_template(each)
    return Placeholder(column, tuple(changes), default, items)


def _unquoted(argument: str) -> str:
    argument = argument.strip() if argument[:1] not in ("'", '"') else argument[1:-1]
    return unescaped(argument)


def _error(template: str, what: str, hint: str) -> SettingsError:
    return SettingsError(f"data.template = {template!r}: {what}", hint)


def _round(digits: str) -> Change:
    if not digits.isdecimal() or int(digits) > 15:
        raise ValueError(f"{digits!r} is not a number of digits from 0 to 15")
    return lambda value: f"{number_in(value):.{int(digits)}f}"


def _join(outer: str = " ", inner: str = ",") -> Change:
    def item(value: Any) -> str:
        return inner.join(map(text_of, value)) if isinstance(value, (list, tuple)) else text_of(value)

    return lambda value: outer.join(map(item, list_in(value)))


def _each(template: str) -> Change:
    parsed = parse_template(template)
    known: dict[tuple[int | str, ...], str] = {}

    def text(item: Any) -> str:
        # Other types may be equal and still be written in another way, such as 1, True and 1.0.
        if type(item) is not list or not _WRITTEN_ALIKE.issuperset(map(type, item)):
            return made(item)
        parts = tuple(item)
        if parts not in known:
            if len(known) >= _KNOWN_ITEMS:
                known.clear()
            known[parts] = made(item)
        return known[parts]

    def made(item: Any) -> str:
        if isinstance(item, (list, tuple)):
            return parsed.text({str(number): value for number, value in enumerate(item)})
        return parsed.text(item if isinstance(item, Mapping) else {"0": item})

    return lambda value: [text(item) for item in list_in(value)]


FILTERS: dict[str, Filter] = {
    "upper": Filter(0, 0, lambda: lambda value: text_of(value).upper()),
    "lower": Filter(0, 0, lambda: lambda value: text_of(value).lower()),
    "strip": Filter(0, 0, lambda: lambda value: text_of(value).strip()),
    "replace": Filter(2, 2, lambda old, new: lambda value: text_of(value).replace(old, new)),
    "default": Filter(1, 1, lambda _text: lambda value: value),
    "round": Filter(1, 1, _round),
    "list": Filter(0, 2, _join),
    "each": Filter(1, 1, _each),
    "json": Filter(0, 0, lambda: lambda value: json.dumps(value, ensure_ascii=False, default=str)),
}
"""All filters. ``list`` joins the items of a list, and those of the lists in it, by its two arguments;
``each`` puts every item into a template of its own, in which ``{0}`` is the item or its first part."""
