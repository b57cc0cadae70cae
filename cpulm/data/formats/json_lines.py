"""JSON lines: a row per line."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec

from cpulm.data.losses import Losses
from cpulm.data.reading import DocumentChunk, EncodingError, Reading
from cpulm.data.records.rows import SKIP, Row, RowReader
from cpulm.data.sources import SourceFile
from cpulm.data.text_decoding import BOM, decoded_lines
from cpulm.errors import DataError

_LARGEST_INT_DIGITS = 300


def read_json_lines(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk]:
    """Yield a document per line that is not blank."""
    reader = RowReader(file, how, losses, unit="line", noun="field")
    return reader.documents(_rows(file, how, losses))


def _rows(file: SourceFile, how: Reading, losses: Losses) -> Iterator[Row]:
    for number, (line, read) in enumerate(decoded_lines(file, how, losses), start=1):
        if isinstance(line, EncodingError):
            yield Row(number, line, read)
            continue
        text = line.removeprefix(BOM) if number == 1 else line
        if text and not text.isspace():
            yield Row(number, _object_in(file, number, text, how), read)


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
