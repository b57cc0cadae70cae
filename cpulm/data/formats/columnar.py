"""Parquet and Arrow: a row per record, read in batches and only in the columns that are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cpulm.data.extras import library
from cpulm.data.losses import Losses
from cpulm.data.reading import DocumentBlock, DocumentChunk, Reading
from cpulm.data.records.rows import Row, RowReader
from cpulm.data.sources import SourceFile
from cpulm.data.spread import EvenShare
from cpulm.errors import DataError

_BATCH_ROWS = 1024


def read_parquet(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk | DocumentBlock]:
    """Yield a document per row."""
    parquet = _library("pyarrow.parquet")
    with file.open() as handle, _readable(file):
        table = parquet.ParquetFile(handle)
        reader, columns = _reader(file, how, losses, table.schema_arrow.names)
        used = EvenShare.of(file.name, how.share)
        batches = _batches(table, columns, used if how.share < 1 else None)
        yield from reader.documents(_rows(file, reader, batches, used, table.metadata.num_rows))


def read_arrow(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk | DocumentBlock]:
    """Yield a document per row of an Arrow stream, as the library datasets stores them, or Arrow file."""
    ipc = _library("pyarrow.ipc")
    with file.open() as handle, _readable(file):
        if handle.peek(6)[:6] == b"ARROW1":
            opened = ipc.open_file(handle)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        else:
            opened = ipc.open_stream(handle)
            batches = iter(opened)
        reader, columns = _reader(file, how, losses, opened.schema.names)
        selected = (batch.select(columns) for batch in batches)
        yield from reader.documents(_rows(file, reader, selected, EvenShare.of(file.name, how.share), None))


def _batches(table: Any, columns: list[str], used: EvenShare | None) -> Iterator[Any]:
    """The batches of a Parquet file, and for each batch of a group that is not read its number of rows.

    A group of rows is read if one of its batches is used; ``None`` uses all.
    """
    if used is None:
        # The library's threads take four times the processor time of one that reads alone.
        yield from table.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)
        return
    before = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        after = before - -rows // _BATCH_ROWS
        if used.before(after) > used.before(before):
            yield from table.iter_batches(_BATCH_ROWS, [group], columns, use_threads=False)
        else:
            yield from (min(_BATCH_ROWS, rows - first) for first in range(0, rows, _BATCH_ROWS))
        before = after


def _library(name: str) -> Any:
    return library(name, what="a Parquet or Arrow file", package="pyarrow", extra="parquet")


class _readable:  # noqa: N801 - used as a function
    """Turns the library's errors into one that names the file."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file

    def __enter__(self) -> None:
        self._error = _library("pyarrow").ArrowException

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, self._error):
            reason = str(error).splitlines()[0]
            raise DataError(f"{self._file.shown} cannot be read: {reason}", "is it complete?") from error


def _reader(file: SourceFile, how: Reading, losses: Losses, names: list[str]) -> tuple[RowReader, list[str]]:
    reader = RowReader(file, how, losses, unit="row", noun="column")
    reader.require(names)
    return reader, [name for name in names if name in reader.columns]


def _rows(
    file: SourceFile, reader: RowReader, batches: Iterable[Any], used: EvenShare, total: int | None
) -> Iterator[Row | DocumentBlock]:
    """The rows of the batches that are used, with their share of the file's bytes, if their number is known.

    Args:
        batches: in their order; for those that are not used the number of rows is enough.
    """
    number = size = 0
    for place, batch in enumerate(batches):
        rows = batch if isinstance(batch, int) else batch.num_rows
        size += file.size * rows // total if total else batch.nbytes
        if not used.has(place):
            number += rows
            continue
        names = batch.schema.names
        columns = [column.to_pylist() for column in batch.columns]
        if reader.block_columns and names and set(reader.block_columns) <= set(names):
            numbers = range(number + 1, number + 1 + rows)
            if block := reader.block(numbers, dict(zip(names, columns, strict=True)), size):
                number, size = number + rows, 0
                yield block
                continue
        for values in zip(*columns, strict=True):
            number += 1
            yield Row(number, dict(zip(names, values, strict=True)), size)
            size = 0
