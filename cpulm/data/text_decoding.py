"""Decodes files piece by piece or line by line, and says where and why that fails."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cpulm.data.encodings import SAMPLE_BYTES, likely_encoding, marked_encoding
from cpulm.data.losses import Losses
from cpulm.data.reading import EncodingError, Reading
from cpulm.data.sources import SourceFile

BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
NUL = "\0"

_CHUNK_BYTES = 1 << 16


def encoding_of(file: SourceFile, how: Reading) -> str:
    """UTF-8 if the file is valid UTF-8 beyond ASCII, else what its byte order mark or ``how`` says."""
    if how.encoding == "utf-8":
        return how.encoding
    decoder, ascii_only, at = codecs.getincrementaldecoder("utf-8")(), True, 0
    with file.open() as handle:
        while data := handle.read(_CHUNK_BYTES):
            if at == 0 and (marked := marked_encoding(data)):
                return marked
            at += len(data)
            try:
                ascii_only = decoder.decode(data).isascii() and ascii_only
            except UnicodeDecodeError:
                return how.encoding
            if b"\0" in data:
                return how.encoding
    return how.encoding if ascii_only or decoder.getstate()[0] else "utf-8"


def decoded_texts(file: SourceFile, how: Reading, losses: Losses) -> Iterator[tuple[str, int]]:
    """Decode a file piece by piece: each text with the bytes that were read for it."""
    decoder = codecs.getincrementaldecoder(how.encoding)(how.errors)
    offset = 0
    with file.open() as handle:
        while True:
            data = handle.read(_CHUNK_BYTES)
            begin = offset - len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, not data)
            except UnicodeDecodeError as error:
                raise _encoding_error(file, how, error, begin) from error
            losses.replaced += _replaced(text, data, how)
            yield _without_nul(file, how, losses, text, data, offset), len(data)
            if not data:
                return
            offset += len(data)


class LineBlock(NamedTuple):
    """Whole lines of a file, with their ends.

    Attributes:
        data: the lines; text if their encoding does not end lines as ASCII does.
        offset: of the first one in the file.
        number: of the first one, from 1 on.
        source_bytes: read for the block.
    """

    data: bytes | str
    offset: int
    number: int
    source_bytes: int

    def after(self, before: LineBlock) -> LineBlock:
        """These lines behind those of ``before``, of which the bytes are counted."""
        if isinstance(self.data, str) or isinstance(before.data, str) or not before.data:
            return self
        return before._replace(data=before.data + self.data, source_bytes=self.source_bytes)

    def behind(self, end: int) -> LineBlock:
        """What is behind the first ``end`` bytes, which are counted."""
        assert isinstance(self.data, bytes)
        return LineBlock(self.data[end:], self.offset + end, self.number + line_count(self.data[:end]), 0)

    def each(self) -> Iterator[LineBlock]:
        """The lines one by one, if they are bytes; all bytes of the file are read for the first one."""
        if isinstance(self.data, str):
            yield self
            return
        offset, read = self.offset, self.source_bytes
        for number, line in enumerate(io.BytesIO(self.data), self.number):
            yield LineBlock(line, offset, number, read)
            offset, read = offset + len(line), 0

    @staticmethod
    def joined(lines: Sequence[LineBlock]) -> LineBlock:
        """Adjacent lines, of which the bytes are counted."""
        data = b"".join(one.data for one in lines if isinstance(one.data, bytes))
        return LineBlock(data, lines[0].offset, lines[0].number, 0) if lines else LineBlock(b"", 0, 1, 0)

    def lines(
        self, file: SourceFile, how: Reading, losses: Losses
    ) -> tuple[list[str], dict[int, EncodingError]]:
        """The lines as text, and why one cannot be decoded, by its place; U+FFFD stands for what is wrong."""
        if isinstance(self.data, str):
            return _split(self.data), {}
        return _decoded_block(file, how, losses, self.data, self.offset, self.number)


def line_count(data: bytes) -> int:
    """How many lines end in ``data``; ten times as fast as its ``count``."""
    return int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")))


def line_blocks(file: SourceFile, how: Reading, losses: Losses) -> Iterator[LineBlock]:
    """The lines of a file, those of about 64 KiB at a time: a call for each takes longer than parsing it."""
    number = 1
    if "\n".encode(how.encoding) != b"\n":  # UTF-16, say
        held: list[str] = []
        for text, read in decoded_texts(file, how, losses):
            cut = text.rfind("\n") + 1 if read else len(text)
            block = "".join([*held, text[:cut]]) if cut or not read else ""
            held = [*([] if block else held), text[cut:]]
            yield LineBlock(block, 0, number, read)
            number += block.count("\n")
        yield LineBlock("".join(held), 0, number, 0)
        return
    offset, parts = 0, list[bytes]()
    with file.open() as handle:
        while True:
            data = handle.read(_CHUNK_BYTES)
            cut = data.rfind(b"\n") + 1
            if data and not cut:
                parts.append(data)
                continue
            lines = b"".join([*parts, data[:cut]])
            yield LineBlock(lines, offset, number, len(lines))
            if not data:
                return
            offset, number, parts = offset + len(lines), number + line_count(lines), [data[cut:]]


def _decoded_block(
    file: SourceFile, how: Reading, losses: Losses, data: bytes, offset: int, number: int
) -> tuple[list[str], dict[int, EncodingError]]:
    """Decode whole lines: all at once, or one by one if that fails."""
    try:
        text = data.decode(how.encoding, how.errors)
    except UnicodeDecodeError:
        pass
    else:
        if NUL not in text:
            losses.replaced += _replaced(text, data, how)
            return _split(text), {}
    lines: list[str] = []
    bad: dict[int, EncodingError] = {}
    for place, line in enumerate(io.BytesIO(data).readlines()):
        try:
            text = line.decode(how.encoding, how.errors)
            losses.replaced += _replaced(text, line, how)
            lines.append(_without_nul(file, how, losses, text, line, offset, number + place))
        except UnicodeDecodeError as error:
            bad[place] = _encoding_error(file, how, error, offset, number + place)
            lines.append(line.decode(how.encoding, "replace"))
        except EncodingError as error:
            bad[place] = error
            lines.append(text)
        offset += len(line)
    return lines, bad


def _without_nul(
    file: SourceFile,
    how: Reading,
    losses: Losses,
    text: str,
    data: bytes,
    begin: int,
    line: int | None = None,
) -> str:
    """The text of ``data``, which begins at ``begin``, with U+FFFD for each NUL.

    No text has NULs: they are every second byte of UTF-16, or what a crash leaves at the end of a log.

    Raises:
        EncodingError: if errors are not to be replaced.
    """
    if NUL not in text:
        return text
    if how.errors == "strict":
        at = begin + max(0, data.find(0))  # in UTF-16 not the character itself, but near it
        raise _not_text(file, how, f"holds a NUL near offset {at:,}", at, line, "remove it")
    losses.replaced += text.count(NUL)
    return text.replace(NUL, REPLACEMENT)


def _split(text: str) -> list[str]:
    """The lines of a text with their ends; only a line feed ends a line."""
    return io.StringIO(text, newline="\n").readlines()


def _replaced(text: str, data: bytes, how: Reading) -> int:
    """How often U+FFFD was put into ``text``; what stood in the data already is not counted."""
    if how.errors == "strict" or REPLACEMENT not in text:
        return 0
    mark = REPLACEMENT.encode(how.encoding, "ignore")
    return max(0, text.count(REPLACEMENT) - (data.count(mark) if mark else 0))


def _encoding_error(
    file: SourceFile, how: Reading, error: UnicodeDecodeError, begin: int, line: int | None = None
) -> EncodingError:
    """The error for bytes of the file, which start at ``begin``, that cannot be decoded."""
    name = "UTF-8" if how.encoding == "utf-8" else how.encoding
    at = begin + error.start
    what = f"is not valid {name}: byte 0x{error.object[error.start]:02x} at offset {at:,}"
    return _not_text(file, how, what, at, line, "name its encoding (--encoding NAME)")


def _not_text(
    file: SourceFile, how: Reading, what: str, at: int, line: int | None, hint: str
) -> EncodingError:
    """The error that says ``what`` of the file's bytes at ``at``, and names the likely encoding."""
    with file.open() as handle:
        sample = handle.read(SAMPLE_BYTES)
        if at >= SAMPLE_BYTES and not marked_encoding(sample):
            handle.seek((at - SAMPLE_BYTES // 2) // 4 * 4)
            sample = handle.read(SAMPLE_BYTES)
    likely = likely_encoding(sample)
    if likely == how.encoding:
        likely = None
    where = f"{file.shown}, line {line}," if line is not None else file.shown
    skip = "" if line is None else "; to leave such rows out: --skip-bad"
    return EncodingError(
        f"{where} {what}" + (f"; it looks like {likely}" if likely else ""),
        (
            f"read it in that encoding: --encoding {likely}"
            if likely
            else f"{hint}, or put U+FFFD there: --errors replace"
        )
        + skip,
        file.name,
        likely,
    )
