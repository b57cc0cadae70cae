"""Turns the rows of a file into documents: chosen by conditions, made into text by a template or a field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import compress
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from cpulm.data.joined import joined, rejoined, separated
from cpulm.data.losses import Losses
from cpulm.data.reading import DEFAULT, DocumentBlock, DocumentChunk, Reading
from cpulm.data.records.chat import ChatTemplate, looks_like_chat
from cpulm.data.records.conditions import parse_condition
from cpulm.data.records.template import Filled, Template
from cpulm.data.records.values import MissingError, RowError, missing, number_in, shown
from cpulm.data.records.values import value_of as found_in
from cpulm.data.sources import SourceFile
from cpulm.data.text_decoding import REPLACEMENT
from cpulm.errors import DataError

_CASE_SENSITIVE = "names of columns are case-sensitive"
SKIP = "leave such rows out: --skip-bad"
_LARGEST_BLOCK = 1 << 20
"""Characters of documents that are handed on together."""
LARGEST_WEIGHT = 100.0
"""The text is read once for each time that a row is used."""


class Row(NamedTuple):
    """One row of a file: its number, its values by name or why it has none, and the bytes read for it."""

    number: int
    values: Mapping[str, Any] | DataError
    source_bytes: int


class RowReader:
    """Makes documents from the rows of one file.

    Args:
        unit: what a row's number counts.
        noun: what a value is called.
    """

    def __init__(
        self,
        file: SourceFile,
        how: Reading,
        losses: Losses,
        *,
        unit: Literal["line", "row", "element"],
        noun: Literal["field", "column"],
    ) -> None:
        self._file = file
        self._how = how
        self._losses = losses
        self._unit = unit
        self._noun = noun
        self._template = how.row_template
        self._conditions = [parse_condition(text) for text in how.where]

    def require(self, columns: Iterable[str]) -> None:
        """Check the columns of a table that has the same ones in every row.

        Raises:
            DataError: naming the first that is missing, and those that exist.
        """
        there = list(columns)
        wanted = self._template.required_of(there) if self._template else [self._how.field]
        for name in [*wanted, *self._beside_the_text]:
            if name not in there and name.split(".")[0] not in there:
                what, near = missing(name, there, self._noun)
                hint = self._ways_out() if name in wanted else _CASE_SENSITIVE
                raise DataError(f"{self._file.shown} {what}", " ".join(filter(None, [near, hint])))

    @property
    def columns(self) -> set[str]:
        """The names of all columns that are used; of ``a.b`` both that and ``a``."""
        used = self._template.columns if self._template else [self._how.field]
        names = [*used, *self._beside_the_text]
        return {*names, *(name.split(".")[0] for name in names)}

    @property
    def block_columns(self) -> list[str]:
        """The columns that :meth:`block` takes; none if rows have marks or weights, and are read alone."""
        template = self._template
        if self._how.row_weight or isinstance(template, ChatTemplate) or (template and template.has_marks):
            return []
        names = template.columns if template else [self._how.field]
        return list(dict.fromkeys([*names, *(one.column for one in self._conditions)]))

    @property
    def _beside_the_text(self) -> list[str]:
        weight = [self._how.row_weight] if self._how.row_weight else []
        return [*(condition.column for condition in self._conditions), *weight]

    def block(
        self, numbers: Sequence[int], columns: Mapping[str, Sequence[Any]], source_bytes: int
    ) -> DocumentBlock | None:
        """The documents of rows with these values of ``block_columns``.

        None if one cannot be used, or they are too large to be held together: then they are read row by row.
        """
        rows = len(numbers)
        try:
            for condition in self._conditions:
                chosen = list(map(condition.chooses, columns[condition.column]))
                numbers = list(compress(numbers, chosen))
                columns = {name: list(compress(values, chosen)) for name, values in columns.items()}
            filtered = rows - len(numbers)
            pieces = self._pieces(columns)
        except (RowError, RecursionError):
            return None
        data = joined(pieces, len(numbers))
        if data is None or len(data) > _LARGEST_BLOCK:
            return None
        values = tuple(piece for piece in pieces if isinstance(piece, list)) if self._template else ()
        if not any(all(piece) if isinstance(piece, list) else next(iter(piece)) for piece in pieces):
            # Some may be empty.
            documents = separated(data)
            numbers, data = list(compress(numbers, documents)), rejoined(list(filter(None, documents)))
            values = tuple(list(compress(column, documents)) for column in values)
        self._losses.filtered += filtered
        return DocumentBlock(self._file.name, numbers, data, source_bytes, values)

    def _pieces(self, columns: Mapping[str, Sequence[Any]]) -> list[Iterable[str]]:
        """The text of rows in pieces, as :func:`cpulm.data.joined.joined` takes them.

        Raises:
            RowError: if that of one cannot be made.
        """
        if isinstance(self._template, Template):
            return self._template.pieces(columns)
        texts = columns[self._how.field]
        if set(map(type, texts)) - {str}:
            raise RowError("not text")
        return [texts]

    def documents(self, rows: Iterable[Row | DocumentBlock]) -> Iterator[DocumentChunk | DocumentBlock]:
        """Yield a document per row, except rows that the conditions leave out, or that have no text.

        Raises:
            DataError: at the first row that cannot be used, unless such rows are to be left out.
        """
        name, read = self._file.name, 0
        for row in rows:
            read += row.source_bytes
            if isinstance(row, DocumentBlock):
                if row.data:
                    yield row._replace(source_bytes=read)
                    read = 0
                continue
            number, values, _ = row
            try:
                if isinstance(values, DataError):
                    raise values
                found = self._filled(number, values)
            except DataError as error:
                if not self._how.skip_bad:
                    raise
                self._losses.skipped += 1
                self._losses.why_skipped = self._losses.why_skipped or error.message
                continue
            if found is None:
                self._losses.filtered += 1
            elif found.text:
                yield DocumentChunk(
                    f"{name}:{number}", found.text, True, read, found.marks, found.values, found.weight
                )
                read = 0

    def _filled(self, number: int, values: Mapping[str, Any]) -> Filled | None:
        """The text of a row and its marks; None if a condition leaves it out."""
        try:
            if not all(condition.holds(values) for condition in self._conditions):
                return None
            filled = self._template.fill(values) if self._template else Filled(self._field_of(values))
            if self._how.row_weight:
                filled = filled._replace(weight=self._weight_of(values))
        except MissingError as error:
            hint = " ".join(filter(None, [error.hint, self._ways_out(values)]))
            raise DataError(f"{self._place(number)} {error}", f"{hint}; or {SKIP}") from error
        except RowError as error:
            hint = f"{error.hint}; or {SKIP}" if error.hint else SKIP
            raise DataError(f"{self._place(number)}: {error}", hint) from error
        except RecursionError:
            raise DataError(f"{self._place(number)}: a value is nested too deep", SKIP) from None
        if _is_valid(filled.text):
            return filled
        return filled._replace(text=self._without_half_pairs(number, filled.text))

    def _field_of(self, values: Mapping[str, Any]) -> str:
        value = found_in(values, self._how.field)
        if isinstance(value, str):
            return value
        raise RowError(
            f"the {self._noun} {self._how.field!r} is {_json_name(value)}, not text",
            "name the one that holds the text (--field NAME), or put values into a text: --template",
        )

    def _weight_of(self, values: Mapping[str, Any]) -> float:
        value = found_in(values, self._how.row_weight)
        with suppress(RowError):
            if 0 <= (weight := number_in(value)) <= LARGEST_WEIGHT:
                return weight
        raise RowError(
            f"the {self._noun} {self._how.row_weight!r} is {shown(value)}",
            f"as a weight it is a number from 0 to {LARGEST_WEIGHT:g}",
        )

    def _without_half_pairs(self, number: int, text: str) -> str:
        if self._how.errors == "strict":
            what = "the template" if self._template else repr(self._how.field)
            raise DataError(
                f"{self._place(number)}: {what} holds half a surrogate pair, which no UTF-8 has",
                f"put U+FFFD there (--errors replace), or {SKIP}",
            )
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        self._losses.replaced += whole.count(REPLACEMENT) - text.count(REPLACEMENT)
        return whole

    def _place(self, number: int) -> str:
        return f"{self._file.shown}, {self._unit} {number}"

    def _ways_out(self, values: Mapping[str, Any] = MappingProxyType({})) -> str:
        if self._how.chat:
            return f"name the {self._noun} that holds the messages: --field NAME"
        if self._how.field == DEFAULT.field and looks_like_chat(values):
            return "it looks like a conversation: read it as one (--chat)"
        if self._template or self._conditions:
            return _CASE_SENSITIVE
        name, several = f"name the {self._noun} that holds the text (--field NAME)", "--template '{a} {b}'"
        if self._unit == "row":  # Parquet and Arrow are no text
            return f"{name}, or put several into a text: {several}"
        return f"{name}, put several into a text ({several}), or read the file as it is: --format text"


def _is_valid(text: str) -> bool:
    """Whether a text is Unicode that UTF-8 can hold: JSON may have half a surrogate pair in a string."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _json_name(value: object) -> str:
    """The JSON name of the type of ``value``, for readers who do not know Python's names."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "an object"
    return "an array" if isinstance(value, (list, tuple)) else "a number"
