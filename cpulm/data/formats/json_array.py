"""A JSON file that is one array of objects, read without holding the array in memory.

The scanner of Python's ``json`` reads one element at a time from a window of text, which grows only while an
element does not fit. An incremental parser such as ijson would be one more compiled dependency for the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json import JSONDecodeError

from cpulm.data.formats.json_lines import json_number, not_an_object
from cpulm.data.formats.plain_text import read_plain_text
from cpulm.data.losses import Losses
from cpulm.data.reading import DEFAULT, DocumentBlock, DocumentChunk, Reading
from cpulm.data.records.rows import Row, RowReader
from cpulm.data.sources import SourceFile
from cpulm.data.text_decoding import BOM, decoded_texts
from cpulm.errors import DataError

LARGEST_ELEMENT = 1 << 26
"""Characters of one element; a longer one is taken for an array that is not closed."""

_BLANK = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")
_DECODER = json.JSONDecoder(parse_int=json_number)


def read_json(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk | DocumentBlock]:
    """Yield a document per element of the array.

    A file that is no array is plain text, unless the settings say how to read rows: much code has such files.
    """
    if _begins(file, how) != "[" and how._replace(errors="strict", encoding="utf-8") == DEFAULT:
        return read_plain_text(file, how, losses)
    reader = RowReader(file, how, losses, unit="element", noun="field")
    return reader.documents(_rows(file, how, losses))


def _begins(file: SourceFile, how: Reading) -> str:
    """The first character that is not white space; empty if it is not near the beginning."""
    with file.open() as handle:
        return handle.read(1 << 12).decode(how.encoding, "replace").removeprefix(BOM).lstrip()[:1]


class _Window:
    """The part of a file's text that is looked at, and the bytes read for it."""

    def __init__(self, file: SourceFile, how: Reading, losses: Losses) -> None:
        self._texts = decoded_texts(file, how, losses)
        self.text = ""
        self.at = 0
        self.read = 0
        self.ended = False

    def grow(self) -> bool:
        """Read at least as much as there is left; False if the file is at its end."""
        before = self.text[self.at :]
        parts, size = [before], 0
        while size <= len(before) and not self.ended:
            text, read = next(self._texts, ("", -1))
            self.ended = read < 0
            self.read += max(0, read)
            parts.append(text)
            size += len(text)
        self.text, self.at = "".join(parts), 0
        return size > 0

    def take_read(self) -> int:
        read, self.read = self.read, 0
        return read


def _rows(file: SourceFile, how: Reading, losses: Losses) -> Iterator[Row]:
    window = _Window(file, how, losses)
    window.grow()
    window.text = window.text.removeprefix(BOM)
    if _skip_blank(window) != "[":
        raise _error(file, "is not an array of JSON objects", "begin with [, or name the file .jsonl")
    window.at += 1
    number = 0
    if _skip_blank(window) == "]":
        return
    while True:
        number += 1
        element = _element(file, number, window)
        where = f"{file.shown}, element {number}"
        values = element if isinstance(element, dict) else not_an_object(where, how)
        yield Row(number, values, window.take_read())
        while not (mark := _BETWEEN.match(window.text, window.at)) or mark.end() == len(window.text):
            if not window.grow():
                break
        if mark is None:
            raise _error(file, f"is not JSON after element {number}: , or ] is missing", "is it complete?")
        window.at = mark.end()
        if mark[1] == "]":
            return


def _skip_blank(window: _Window) -> str:
    while True:
        blank = _BLANK.match(window.text, window.at)
        window.at = blank.end() if blank else window.at
        if window.at < len(window.text) or not window.grow():
            return window.text[window.at : window.at + 1]


def _element(file: SourceFile, number: int, window: _Window) -> object:
    """Read the element that begins at the window's place."""
    while True:
        try:
            element, window.at = _DECODER.raw_decode(window.text, window.at)
        except (JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, JSONDecodeError) else "it is nested too deep"
            if len(window.text) - window.at > LARGEST_ELEMENT or not window.grow():
                hint = "is it complete? A file with one object per line is named .jsonl"
                raise _error(file, f"is not JSON at element {number}: {reason}", hint) from error
        else:
            return element


def _error(file: SourceFile, what: str, hint: str) -> DataError:
    return DataError(f"{file.shown} {what}", hint)
