"""Reads files as documents, in constant memory: each suffix has a generator that yields chunks of text.

A new format is one generator and one entry in ``READERS``.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from cpulm.data.sources import SourceFile
from cpulm.errors import DataError

Errors = Literal["strict", "replace"]

_CHUNK_BYTES = 1 << 16
_SNIFFED_BYTES = 1 << 13
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


class DocumentChunk(NamedTuple):
    """A part of a document.

    ``name`` is the document's; ``ends`` marks its last chunk; ``source_bytes`` were read for the chunk.
    """

    name: str
    text: str
    ends: bool
    source_bytes: int


Reader = Callable[[SourceFile, str, Errors], Iterator[DocumentChunk]]


def read_chunks(file: SourceFile, field: str, errors: Errors) -> Iterator[DocumentChunk]:
    """Yield the documents of ``file`` in order, each as one or more chunks. Empty documents are left out.

    Args:
        file: the file to read; its suffix chooses the format.
        field: the field of a JSONL line that holds its text.
        errors: ``replace`` puts U+FFFD in the place of bytes that are not UTF-8. The built-in text is
            always read that way.

    Raises:
        DataError: naming the file and the byte offset or line that cannot be used.
    """
    try:
        yield from READERS.get(file.path.suffix.lower(), _read_text)(file, field, _errors_for(file, errors))
    except OSError as error:
        raise DataError(f"cannot read {file.path}: {error.strerror}", "check its permissions") from error


def is_binary(file: SourceFile) -> bool:
    """Whether the first 8 KiB of the file hold a zero byte, which UTF-8 text does not contain.

    Raises:
        DataError: if the file cannot be opened.
    """
    try:
        with file.path.open("rb") as handle:
            return b"\0" in handle.read(_SNIFFED_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {file.path}: {error.strerror}", "check its permissions") from error


def _errors_for(file: SourceFile, errors: Errors) -> Errors:
    return "replace" if file.builtin else errors


def _read_text(file: SourceFile, _field: str, errors: Errors) -> Iterator[DocumentChunk]:
    """Read the whole file as one document; a byte order mark at its beginning is dropped."""
    held: tuple[str, int] | None = None
    rest, offset = b"", 0
    with file.path.open("rb") as handle:
        while True:
            chunk = handle.read(_CHUNK_BYTES)
            buffer = rest + chunk
            text, used = _decoded(file, buffer, offset, errors, final=not chunk)
            if held is None:
                text = text.removeprefix(_BOM)
            elif held[0]:
                # One chunk is held back, because the last chunk must be marked as the last.
                yield DocumentChunk(file.name, held[0], not (text or chunk), held[1])
            if not chunk:
                if text:
                    yield DocumentChunk(file.name, text, True, used)
                return
            held = (text, len(chunk))
            rest, offset = buffer[used:], offset + used


def _decoded(file: SourceFile, data: bytes, offset: int, errors: Errors, *, final: bool) -> tuple[str, int]:
    """Decode ``data``, which begins at ``offset`` of the file; return the text and how many bytes it took."""
    try:
        return codecs.utf_8_decode(data, errors, final)
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise DataError(
            f"{file.path} is not valid UTF-8: byte 0x{data[error.start]:02x} at offset {at:,}",
            "convert it to UTF-8, or put U+FFFD there: --errors replace",
        ) from error


def _read_jsonl(file: SourceFile, field: str, errors: Errors) -> Iterator[DocumentChunk]:
    """Yield one document per line that is not blank: the string in ``field`` of the line's object."""
    offset = 0
    with file.path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            text, _used = _decoded(file, line, offset, errors, final=True)
            offset += len(line)
            if number == 1:
                text = text.removeprefix(_BOM)
            if not text.isspace() and (document := _document_in(file, number, text, field, errors)):
                yield DocumentChunk(f"{file.name}:{number}", document, True, len(line))


def _json_name(value: object) -> str:
    """The JSON name of the type of ``value``, for readers who do not know Python's names."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict):
        return "an object"
    return "an array" if isinstance(value, list) else "a number"


def _document_in(file: SourceFile, number: int, line: str, field: str, errors: Errors) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file.path}, line {number} is not JSON: {error}", "write one JSON object per line"
        ) from error
    if not isinstance(record, dict) or field not in record:
        there = f"has {', '.join(map(repr, record))}" if isinstance(record, dict) else "is not an object"
        raise DataError(
            f"{file.path}, line {number} has no field {field!r}: it {there}"[:300],
            "name the field that holds the text: --field NAME",
        )
    text = record[field]
    if not isinstance(text, str):
        raise DataError(
            f"{file.path}, line {number}: the field {field!r} is {_json_name(text)}, not text",
            "take such lines out, or name the field that holds the text: --field NAME",
        )
    if _HALF_PAIR.search(text) is None:
        return text
    if errors == "strict":
        raise DataError(
            f"{file.path}, line {number}: {field!r} holds half a surrogate pair, which no UTF-8 has",
            "mend the line, or put U+FFFD there: --errors replace",
        )
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


READERS: dict[str, Reader] = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl}
"""Suffix to reader; every other file is one document of plain text."""
