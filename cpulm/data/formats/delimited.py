"""Tables in text, CSV and TSV: a row per record, columns named by the first line.

Quoted cells may hold delimiters, line ends and doubled quotes. The delimiter of a ``.csv`` file is the one of
``,``, ``;``, tab and ``|`` that its first line has most often outside quotes.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain
from typing import Protocol

from cpulm.data.formats.plain_rows import plain_rows
from cpulm.data.losses import Losses
from cpulm.data.reading import DocumentBlock, DocumentChunk, EncodingError, Reading
from cpulm.data.records.rows import SKIP, Row, RowReader
from cpulm.data.sources import SourceFile
from cpulm.data.text_decoding import BOM, LineBlock, line_blocks
from cpulm.errors import DataError

LARGEST_CELL = 1 << 24
"""Characters of one cell; a longer one is taken for a quote that is not closed."""

_DELIMITERS = (",", ";", "\t", "|")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def read_csv(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk | DocumentBlock]:
    """Yield a document per row of a table."""
    return _read(file, how, losses, None)


def read_tsv(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk | DocumentBlock]:
    """Yield a document per row of a table with tabs between the cells."""
    return _read(file, how, losses, "\t")


def _read(
    file: SourceFile, how: Reading, losses: Losses, delimiter: str | None
) -> Iterator[DocumentChunk | DocumentBlock]:
    csv.field_size_limit(LARGEST_CELL)
    blocks = line_blocks(file, how, losses)
    lines = _Lines(file, how, losses, blocks)
    if delimiter is None:
        outside = _QUOTED.sub("", lines.first[0] if lines.first else "")
        delimiter = max(_DELIMITERS, key=outside.count)  # the first one of equals
    cells = lines.reader(delimiter)
    try:
        columns = [name.strip() for name in next(cells, [])]
    except csv.Error as error:
        raise DataError(f"{file.shown}, line 1: {error}", "write the names of the columns there") from error
    if bad := lines.bad_line(1, cells.line_num):
        raise bad
    if not columns:
        return
    if twice := {name for name, count in Counter(columns).items() if count > 1}:
        raise DataError(
            f"{file.shown} has two columns {min(twice)!r}", "give every column a name of its own in line 1"
        )
    reader = RowReader(file, how, losses, unit="line", noun="column")
    reader.require(columns)

    def rows() -> Iterator[Row | DocumentBlock]:
        yield from _rows(file, lines, cells, columns)
        rest = lines.rest()
        for block in blocks:
            block = block.after(rest)
            if (found := _plain(block, how, reader, columns, delimiter)) is not None:
                documents, rest = found
                yield documents
                continue
            others = _Lines(file, how, losses, chain([block], blocks))
            yield from _rows(file, others, others.reader(delimiter), columns)
            rest = others.rest()
        others = _Lines(file, how, losses, iter([rest]))
        yield from _rows(file, others, others.reader(delimiter), columns)

    yield from reader.documents(rows())


def _plain(
    block: LineBlock, how: Reading, reader: RowReader, columns: list[str], delimiter: str
) -> tuple[DocumentBlock, LineBlock] | None:
    """The documents of all whole rows of a block, and what is behind them; None if csv.reader is needed."""
    names = reader.block_columns
    if how.encoding != "utf-8" or isinstance(block.data, str) or not names or set(names) - set(columns):
        return None
    places = [columns.index(name) for name in names]
    found = plain_rows(block.data, len(columns), places, delimiter, LARGEST_CELL)
    if found is None:
        return None
    numbers = [block.number + before for before in found.lines]
    cells = dict(zip(names, found.cells, strict=True))
    documents = reader.block(numbers, cells, block.source_bytes)
    return None if documents is None else (documents, block.behind(found.end))


class _Cells(Protocol):
    """What ``csv.reader`` returns."""

    line_num: int

    def __next__(self) -> list[str]: ...

    def __iter__(self) -> Iterator[list[str]]: ...


class _Lines:
    """The lines of a block for ``csv.reader`` in a list, so that what is called for each is in C.

    Of the blocks behind it lines are taken one by one, while a row goes on in them.

    Attributes:
        first: the lines of the block.
        before: how many lines of the file are before these.
        given: how many lines the reader has got, those of the block included.
        read: bytes read since this was last set to 0.
    """

    def __init__(self, file: SourceFile, how: Reading, losses: Losses, blocks: Iterator[LineBlock]) -> None:
        self._file, self._how, self._losses = file, how, losses
        self._blocks = blocks
        self._bad: dict[int, EncodingError] = {}
        self._rest: deque[LineBlock] = deque()
        self.given = self.read = 0
        block = next(blocks)
        self.before = block.number - 1
        self.first = self._decoded(block)
        if self.before == 0:
            self.first[:1] = [line.removeprefix(BOM) for line in self.first[:1]]

    def reader(self, delimiter: str) -> _Cells:
        """The rows from the block's beginning on."""
        lines = chain(self.first, chain.from_iterable(self._behind()))
        return csv.reader(lines, delimiter=delimiter, strict=True)

    def rest(self) -> LineBlock:
        """What the reader has not got of the last block that was begun."""
        return LineBlock.joined(self._rest)

    def _decoded(self, block: LineBlock) -> list[str]:
        lines, bad = block.lines(self._file, self._how, self._losses)
        self._bad |= {block.number + place: error for place, error in bad.items()}
        self.given += len(lines)
        self.read += block.source_bytes
        return lines

    def _behind(self) -> Iterator[list[str]]:
        for block in self._blocks:
            self._rest.extend(block.each())
            while self._rest:
                yield self._decoded(self._rest.popleft())

    def bad_line(self, first: int, last: int) -> EncodingError | None:
        """Why one of these lines cannot be decoded."""
        if not self._bad:
            return None
        bad = [self._bad.pop(number) for number in range(first, last + 1) if number in self._bad]
        return bad[0] if bad else None

    def take_read(self) -> int:
        read, self.read = self.read, 0
        return read


def _rows(file: SourceFile, lines: _Lines, cells: _Cells, columns: list[str]) -> Iterator[Row]:
    """The rows up to the end of a block."""
    width = len(columns)
    while cells.line_num < lines.given:
        number = lines.before + cells.line_num + 1
        values: DataError | None = None
        try:
            row = next(cells, None)
        except csv.Error as error:
            row, values = [], _not_csv(file, number, lines.before + cells.line_num, str(error))
        values = lines.bad_line(number, lines.before + cells.line_num) or values
        if values is not None:
            yield Row(number, values, lines.take_read())
        elif row is None:
            return
        elif len(row) == width:
            yield Row(number, dict(zip(columns, row, strict=True)), lines.take_read())
        elif row:
            what = f"{file.shown}, line {number} has {len(row)} cells, but there are {width} columns"
            hint = f"put cells with delimiters in quotes, or {SKIP}"
            yield Row(number, DataError(what, hint), lines.take_read())


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
