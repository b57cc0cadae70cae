"""Tables in text, CSV and TSV: a row per record, columns named by the first line.

Quoted cells may hold delimiters, line ends and doubled quotes. The delimiter of a ``.csv`` file is the one of
``,``, ``;``, tab and ``|`` that its first line has most often outside quotes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from cpulm.data.losses import Losses
from cpulm.data.reading import DocumentChunk, EncodingError, Reading
from cpulm.data.records.rows import SKIP, Row, RowReader
from cpulm.data.sources import SourceFile
from cpulm.data.text_decoding import BOM, decoded_lines
from cpulm.errors import DataError

LARGEST_CELL = 1 << 24
"""Characters of one cell; a longer one is taken for a quote that is not closed."""

_DELIMITERS = (",", ";", "\t", "|")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def read_csv(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk]:
    """Yield a document per row of a table."""
    return _read(file, how, losses, None)


def read_tsv(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk]:
    """Yield a document per row of a table with tabs between the cells."""
    return _read(file, how, losses, "\t")


def _read(file: SourceFile, how: Reading, losses: Losses, delimiter: str | None) -> Iterator[DocumentChunk]:
    lines = _Lines(file, how, losses)
    first = next(lines, "").removeprefix(BOM)
    if delimiter is None:
        outside = _QUOTED.sub("", first)
        delimiter = max(_DELIMITERS, key=outside.count)  # the first one of equals
    lines.again = first
    csv.field_size_limit(LARGEST_CELL)
    cells = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        columns = [name.strip() for name in next(cells, [])]
    except csv.Error as error:
        raise DataError(f"{file.shown}, line 1: {error}", "write the names of the columns there") from error
    if lines.bad is not None:
        raise lines.bad
    if not columns:
        return
    if twice := {name for name in columns if columns.count(name) > 1}:
        raise DataError(
            f"{file.shown} has two columns {min(twice)!r}", "give every column a name of its own in line 1"
        )
    reader = RowReader(file, how, losses, unit="line", noun="column")
    reader.require(columns)
    yield from reader.documents(_rows(file, lines, cells, columns))


class _Lines(Iterator[str]):
    """The lines of a file for ``csv.reader``.

    Attributes:
        number: of the last line.
        read: bytes read since this was last set to 0.
        bad: why a line cannot be decoded; the row that it is in cannot be used.
        again: the line to give next, which was given before.
    """

    def __init__(self, file: SourceFile, how: Reading, losses: Losses) -> None:
        self._lines = decoded_lines(file, how, losses)
        self.number = 0
        self.read = 0
        self.bad: EncodingError | None = None
        self.again: str | None = None

    def __next__(self) -> str:
        if self.again is not None:
            line, self.again = self.again, None
            return line
        decoded, source_bytes = next(self._lines)
        self.number += 1
        self.read += source_bytes
        if isinstance(decoded, EncodingError):
            self.bad = decoded
            return decoded.line  # with its quotes, so that the row ends where it ends
        return decoded


def _rows(file: SourceFile, lines: _Lines, cells: Iterator[list[str]], columns: list[str]) -> Iterator[Row]:
    width = len(columns)
    while True:
        number, values = lines.number + 1, None
        try:
            row = next(cells, None)
        except csv.Error as error:
            row, values = [], _not_csv(file, number, lines.number, str(error))
        read, lines.read = lines.read, 0
        if lines.bad is not None:
            values, lines.bad = lines.bad, None
        if values is not None:
            yield Row(number, values, read)
        elif row is None:
            return
        elif len(row) == width:
            yield Row(number, dict(zip(columns, row, strict=True)), read)
        elif row:
            what = f"{file.shown}, line {number} has {len(row)} cells, but there are {width} columns"
            yield Row(number, DataError(what, f"put cells with delimiters in quotes, or {SKIP}"), read)


def _not_csv(file: SourceFile, first: int, last: int, reason: str) -> DataError:
    """The error for a row that is not CSV.

    Raises:
        DataError: at once if the rest of the file is in it, which is too much to leave out.
    """
    if "unexpected end" in reason or "field larger" in reason:
        raise DataError(
            f"{file.shown}, line {first}: a quote opens here and is not closed up to line {last}",
            'close it, or write it twice ("") where it is part of a cell',
        )
    return DataError(
        f"{file.shown}, line {first} is not CSV: {reason}", f"write quotes in quoted cells twice, or {SKIP}"
    )
