"""Tables in text, CSV and TSV: a row per record, columns named by the first line.

Quoted cells may hold delimiters, line ends and doubled quotes. The delimiter of a ``.csv`` file is the one of
``,``, ``;``, tab and ``|`` that its first line has most often outside quotes.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Protocol

from cpulm.data.losses import Losses
from cpulm.data.reading import DocumentChunk, EncodingError, Reading
from cpulm.data.records.rows import SKIP, Row, RowReader
from cpulm.data.sources import SourceFile
from cpulm.data.text_decoding import BOM, line_blocks
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
    blocks = _Blocks(file, how, losses)
    lines = iter(blocks)
    head = next(lines, [])
    head[:1] = [line.removeprefix(BOM) for line in head[:1]]
    if delimiter is None:
        outside = _QUOTED.sub("", head[0] if head else "")
        delimiter = max(_DELIMITERS, key=outside.count)  # the first one of equals
    csv.field_size_limit(LARGEST_CELL)
    cells = csv.reader(chain(head, chain.from_iterable(lines)), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip() for name in next(cells, [])]
    except csv.Error as error:
        raise DataError(f"{file.shown}, line 1: {error}", "write the names of the columns there") from error
    if bad := blocks.bad_line(1, cells.line_num):
        raise bad
    if not columns:
        return
    if twice := {name for name, count in Counter(columns).items() if count > 1}:
        raise DataError(
            f"{file.shown} has two columns {min(twice)!r}", "give every column a name of its own in line 1"
        )
    reader = RowReader(file, how, losses, unit="line", noun="column")
    reader.require(columns)
    yield from reader.documents(_rows(file, blocks, cells, columns))


class _Cells(Protocol):
    """What ``csv.reader`` returns."""

    line_num: int

    def __next__(self) -> list[str]: ...

    def __iter__(self) -> Iterator[list[str]]: ...


class _Blocks:
    """The lines of a file for ``csv.reader``, a list at a time: what is called for each line is in C.

    Attributes:
        read: bytes read since this was last set to 0.
    """

    def __init__(self, file: SourceFile, how: Reading, losses: Losses) -> None:
        self._blocks = line_blocks(file, how, losses)
        self._bad: dict[int, EncodingError] = {}
        self.read = 0

    def __iter__(self) -> Iterator[list[str]]:
        number = 1
        for lines, bad, read in self._blocks:
            self.read += read
            self._bad |= {number + place: error for place, error in bad.items()}
            number += len(lines)
            yield lines

    def bad_line(self, first: int, last: int) -> EncodingError | None:
        """Why one of these lines cannot be decoded."""
        if not self._bad:
            return None
        bad = [self._bad.pop(number) for number in range(first, last + 1) if number in self._bad]
        return bad[0] if bad else None

    def take_read(self) -> int:
        read, self.read = self.read, 0
        return read


def _rows(file: SourceFile, blocks: _Blocks, cells: _Cells, columns: list[str]) -> Iterator[Row]:
    width = len(columns)
    while True:
        number = cells.line_num + 1
        values: DataError | None = None
        try:
            row = next(cells, None)
        except csv.Error as error:
            row, values = [], _not_csv(file, number, cells.line_num, str(error))
        values = blocks.bad_line(number, cells.line_num) or values
        if values is not None:
            yield Row(number, values, blocks.take_read())
        elif row is None:
            return
        elif len(row) == width:
            yield Row(number, dict(zip(columns, row, strict=True)), blocks.take_read())
        elif row:
            what = f"{file.shown}, line {number} has {len(row)} cells, but there are {width} columns"
            hint = f"put cells with delimiters in quotes, or {SKIP}"
            yield Row(number, DataError(what, hint), blocks.take_read())


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
