"""JSON lines: a row per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from cpulm.data.losses import Losses
from cpulm.data.reading import DocumentBlock, DocumentChunk, Reading
from cpulm.data.records.rows import SKIP, Row, RowReader
from cpulm.data.records.values import MissingError, value_of
from cpulm.data.sources import SourceFile
from cpulm.data.text_decoding import BOM, LineBlock, line_blocks, line_count
from cpulm.errors import DataError

_LARGEST_INT_DIGITS = 300
_DECODER = msgspec.json.Decoder(dict[str, Any])


def read_json_lines(
    file: SourceFile, how: Reading, losses: Losses
) -> Iterator[DocumentChunk | DocumentBlock]:
    """Yield a document per line that is not blank."""
    reader = RowReader(file, how, losses, unit="line", noun="field")
    return reader.documents(_rows(file, how, losses, reader))


def _rows(file: SourceFile, how: Reading, losses: Losses, reader: RowReader) -> Iterator[Row | DocumentBlock]:
    for block in line_blocks(file, how, losses):
        records = _objects_in(block.data) if how.encoding == "utf-8" else None
        if records is None:
            yield from _one_by_one(file, how, losses, block)
            continue
        numbers = range(block.number, block.number + len(records))
        columns, read = _columns(records, reader.block_columns), block.source_bytes
        if columns and (found := reader.block(numbers, columns, read)):
            yield found
            continue
        for number, record in zip(numbers, records, strict=True):
            yield Row(number, record, read)
            read = 0


def _columns(records: list[dict[str, Any]], names: list[str]) -> dict[str, list[Any]] | None:
    """The values of all records by the names of their fields; None if one has not all of them."""
    try:
        return {name: [record[name] for record in records] for name in names}
    except KeyError:
        pass
    try:
        return {name: [value_of(record, name) for record in records] for name in names}
    except MissingError:
        return None


def _objects_in(data: bytes | str) -> list[dict[str, Any]] | None:
    """The objects of all lines; None if one line is blank or holds something else, or is not UTF-8."""
    if isinstance(data, str) or b"\0" in data:
        return None
    try:
        records = _DECODER.decode_lines(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    # Each value takes a line at least, so it is one in each.
    return records if len(records) == line_count(data) else None


def _one_by_one(file: SourceFile, how: Reading, losses: Losses, block: LineBlock) -> Iterator[Row]:
    lines, bad = block.lines(file, how, losses)
    read = block.source_bytes
    for number, line in enumerate(lines, block.number):
        if error := bad.get(number - block.number):
            yield Row(number, error, read)
        else:
            text = line.removeprefix(BOM) if number == 1 else line
            if not text or text.isspace():
                continue
            yield Row(number, _object_in(file, number, text, how), read)
        read = 0


def _object_in(file: SourceFile, number: int, line: str, how: Reading) -> dict[str, object] | DataError:
    try:
        record = _decoded(line)
    except (ValueError, RecursionError) as error:
        reason = error if isinstance(error, ValueError) else "it is nested too deep"
        return DataError(
            f"{file.shown}, line {number} is not JSON: {reason}", f"write one JSON object per line, or {SKIP}"
        )
    return record if isinstance(record, dict) else not_an_object(f"{file.shown}, line {number}", how)


def _decoded(line: str) -> object:
    """The value of a line. msgspec takes half the time; json also takes what it refuses, such as NaN."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return json.loads(line, parse_int=json_number)


def not_an_object(where: str, how: Reading) -> DataError:
    """The error for a JSON value that has no fields."""
    wanted = "fields" if how.row_template else f"field {how.field!r}"
    return DataError(f"{where} has no {wanted}: it is not an object", f"write JSON objects, or {SKIP}")


def json_number(digits: str) -> int | float:
    """An int of JSON; a float if it is so long that Python's int refuses it, which JSON allows."""
    return int(digits) if len(digits) < _LARGEST_INT_DIGITS else float(digits)
