"""Reads a share of a large file without the rest: stretches that are spread evenly over it.

A stretch begins and ends where a line does, or a document if that is known. All stretches together are the
file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from cpulm.data.readers import format_of
from cpulm.data.reading import Reading
from cpulm.data.records.template import unescaped
from cpulm.data.sources import SourceFile
from cpulm.data.spread import EvenShare

STRETCH_BYTES = 1 << 18
"""About so long is a stretch: a disk reads it in a few milliseconds, as long as it takes to find it."""
LARGE_BYTES = 64 * STRETCH_BYTES
"""Smaller files are read whole, and their documents are chosen one by one, which is a finer choice."""

_FIRST_LOOK = 1 << 12
"""Bytes in which the end of a line is looked for first."""


class FileStretch(NamedTuple):
    """A part of a file as a file of its own, and the bytes between it and the stretch before."""

    file: SourceFile
    skipped_bytes: int


def has_stretches(file: SourceFile, how: Reading) -> bool:
    """Whether a file is large, and can be read from the middle: plain text and JSON lines, in UTF-8."""
    is_text = format_of(file, how) in ("text", "jsonl") and how.encoding == "utf-8"
    if file.size < LARGE_BYTES or not is_text or file.is_packed or file.builtin:
        return False
    with file.open() as handle:
        return b"\0" not in handle.read(_FIRST_LOOK)  # UTF-16, say, which the reader names


def has_batches(file: SourceFile, how: Reading) -> bool:
    """Whether a file is large, and batches of its rows can be left out: of a format for ``Reading.share``."""
    return file.size >= LARGE_BYTES and format_of(file, how) in ("parquet", "arrow")


def stretches(file: SourceFile, how: Reading, share: float) -> Iterator[FileStretch]:
    """Yield the stretches of the file that make up ``share`` of it, in their order.

    Each has a name of its own, with the file's suffix, which does not depend on the share.
    """
    is_rows, chosen, read_to = format_of(file, how) == "jsonl", EvenShare.of(file.name, share), 0
    ends = _line_ends(how, is_rows=is_rows)
    count = -(-file.size // STRETCH_BYTES)
    with file.open() as handle:
        for number in range(count):
            if not chosen.has(number):
                continue
            begin = _border(handle, file.size, number, ends, inside=not is_rows)
            if begin is None:  # within a row, which belongs to the stretch where it begins
                continue
            following = (
                _border(handle, file.size, later, ends, inside=not is_rows)
                for later in range(number + 1, count + 1)
            )
            end = next(border for border in following if border is not None)
            if end > begin:
                part = replace(file, name=f"{number}:{file.name}", begin=begin, size=end - begin)
                yield FileStretch(part, begin - read_to)
                read_to = end


def _line_ends(how: Reading, *, is_rows: bool) -> tuple[bytes, ...]:
    """What ends a document, or else a line, the best first."""
    if is_rows:
        return (b"\n",)
    if how.separator:
        return (unescaped(how.separator).encode(), b"\n")
    return (b"\n\n", b"\r\n\r\n", b"\n") if how.document == "paragraph" else (b"\n",)


def _border(
    handle: io.BufferedReader, size: int, number: int, ends: tuple[bytes, ...], *, inside: bool
) -> int | None:
    """Where a stretch begins: behind the first of ``ends`` in it.

    Args:
        inside: whether a line may be cut, between two characters; else None if no line ends in the stretch.
    """
    at = number * STRETCH_BYTES
    if at == 0 or at >= size:
        return min(at, size)
    for end in ends:
        for reach in (_FIRST_LOOK, STRETCH_BYTES):
            handle.seek(at)
            data = handle.read(reach)
            if (found := data.find(end)) >= 0:
                return at + found + len(end)
    starts = (place for place, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80)
    return at + next(starts, 0) if inside else None
