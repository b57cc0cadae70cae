"""Reads files as documents, in constant memory: each suffix has a generator that yields chunks of text.

A new format is one generator and one entry in ``READERS``.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cpulm.data.encodings import SAMPLE_BYTES, is_text_in, likely_encoding, marked_encoding
from cpulm.data.sources import SourceFile
from cpulm.errors import DataError
from cpulm.settings import DataSettings

Errors = Literal["strict", "replace"]

_CHUNK_BYTES = 1 << 16
_SNIFFED_BYTES = 1 << 13
_NAMED_FILES = 10
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_STRUCTURED = {".csv", ".tsv", ".json"}


class Reading(NamedTuple):
    """How files are read; the settings of ``data`` with these names.

    Attributes:
        field: the field of a JSONL line that holds its text.
        errors: ``replace`` puts U+FFFD in the place of bytes that cannot be decoded.
        encoding: of files that are not UTF-8.
        skip_bad: leave out JSONL lines that cannot be used.
    """

    field: str = "text"
    errors: Errors = "strict"
    encoding: str = "utf-8"
    skip_bad: bool = False

    @classmethod
    def of(cls, data: DataSettings) -> Reading:
        return cls(data.field, data.errors, codecs.lookup(data.encoding).name, data.skip_bad)


DEFAULT = Reading()


@dataclass
class Losses:
    """What was lost in reading, counted: places where U+FFFD was put, and JSONL lines that were left out.

    ``why_skipped`` is the message of the first line left out.
    """

    replaced: int = 0
    skipped: int = 0
    why_skipped: str = ""

    def in_words(self) -> list[str]:
        """One sentence for each kind of loss that there was."""
        said = []
        if self.replaced:
            what = f"U+FFFD was put in {self.replaced:,} places that could not be decoded"
            said.append(f"{what}; if they are many, the text is in another encoding: --encoding NAME")
        if self.skipped:
            lines = "1 line was" if self.skipped == 1 else f"{self.skipped:,} lines were"
            said.append(f"{lines} left out, the first because {self.why_skipped}")
        return said


class DocumentChunk(NamedTuple):
    """A part of a document.

    ``name`` is the document's; ``ends`` marks its last chunk; ``source_bytes`` were read for the chunk.
    """

    name: str
    text: str
    ends: bool
    source_bytes: int


class EncodingError(DataError):
    """A file is in another encoding: ``what`` names the file and, if it can be guessed, the encoding."""

    def __init__(self, message: str, hint: str, what: str) -> None:
        super().__init__(message, hint)
        self.what = what


Reader = Callable[[SourceFile, Reading, Losses], Iterator[DocumentChunk]]


def read_files(
    files: Sequence[SourceFile], how: Reading, losses: Losses | None = None
) -> Iterator[DocumentChunk]:
    """Yield the documents of all files, as :func:`read_chunks` does for one.

    Raises:
        DataError: as :func:`read_chunks`; if a file is in another encoding, all such files are named.
    """
    for number, file in enumerate(files):
        try:
            yield from read_chunks(file, how, losses)
        except EncodingError as error:
            raise _with_others(error, files[number + 1 :], how) from error


def read_chunks(file: SourceFile, how: Reading, losses: Losses | None = None) -> Iterator[DocumentChunk]:
    """Yield the documents of ``file`` in order, each as one or more chunks. Empty documents are left out.

    Args:
        file: the file to read; its suffix chooses the format.
        how: how to read it. The built-in text is always read with replacements.
        losses: counts what is lost.

    Raises:
        DataError: naming the file and the byte offset or line that cannot be used.
    """
    if file.builtin:
        how = Reading(errors="replace")
    try:
        how = how._replace(encoding=_encoding_of(file, how))
        yield from READERS.get(_suffix(file), _read_text)(file, how, losses or Losses())
    except OSError as error:
        raise DataError(f"cannot read {file.path}: {error.strerror}", "check its permissions") from error


def is_binary(file: SourceFile, encoding: str = "utf-8") -> bool:
    """Whether the first 8 KiB of the file hold a zero byte and cannot be text in ``encoding`` or UTF-16.

    Raises:
        DataError: if the file cannot be opened.
    """
    try:
        with file.open() as handle:
            data = handle.read(_SNIFFED_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {file.path}: {error.strerror}", "check its permissions") from error
    return b"\0" in data and not is_text_in(data, likely_encoding(data) or encoding)


def unused_field(files: Sequence[SourceFile], how: Reading) -> str | None:
    """A warning if ``how.field`` was chosen and files that look as if they had fields have none for cpulm."""
    plain = [file for file in files if _suffix(file) not in READERS]
    odd = [file for file in plain if _suffix(file) in _STRUCTURED] or (
        plain if len(plain) == len(files) else []
    )
    if how.field == DEFAULT.field or not odd:
        return None
    others = f" and {len(odd) - 1:,} more" if len(odd) > 1 else ""
    return (
        f"the field {how.field!r} has no effect on {odd[0].name}{others}: only lines of .jsonl and .ndjson "
        "have fields, other files are read whole, as plain text"
    )


def _suffix(file: SourceFile) -> str:
    return file.path.suffix.lower()


def _encoding_of(file: SourceFile, how: Reading) -> str:
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


def _read_text(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk]:
    """Read the whole file as one document; a byte order mark at its beginning is dropped."""
    held, held_bytes, begins = "", 0, True
    for text, read in _texts(file, how, losses):
        text, begins = text.removeprefix(_BOM) if begins else text, False
        if held and text:
            # One chunk is held back, because the last chunk must be marked as the last.
            yield DocumentChunk(file.name, held, False, held_bytes)
            held_bytes = 0
        held, held_bytes = text or held, held_bytes + read
    if held:
        yield DocumentChunk(file.name, held, True, held_bytes)


def _texts(file: SourceFile, how: Reading, losses: Losses) -> Iterator[tuple[str, int]]:
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
            yield text, len(data)
            if not data:
                return
            offset += len(data)


def _replaced(text: str, data: bytes, how: Reading) -> int:
    """How often U+FFFD was put into ``text``; what stood in the data already is not counted."""
    if how.errors == "strict" or _REPLACEMENT not in text:
        return 0
    mark = _REPLACEMENT.encode(how.encoding, "ignore")
    return max(0, text.count(_REPLACEMENT) - (data.count(mark) if mark else 0))


def _lines(file: SourceFile, how: Reading, losses: Losses) -> Iterator[tuple[str | EncodingError, int]]:
    """The lines of a file, or why one cannot be decoded, each with the bytes read for it."""
    if "\n".encode(how.encoding) != b"\n":  # UTF-16, say
        rest = ""
        for text, read in _texts(file, how, losses):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                yield line, read
                read = 0
        yield rest, 0
        return
    offset = 0
    with file.open() as handle:
        for number, data in enumerate(handle, start=1):
            try:
                line = data.decode(how.encoding, how.errors)
                losses.replaced += _replaced(line, data, how)
                yield line, len(data)
            except UnicodeDecodeError as error:
                yield _encoding_error(file, how, error, offset, number), len(data)
            offset += len(data)


def _encoding_error(
    file: SourceFile, how: Reading, error: UnicodeDecodeError, begin: int, line: int | None = None
) -> EncodingError:
    """The error for bytes of the file, which start at ``begin``, that cannot be decoded."""
    at = begin + error.start
    with file.open() as handle:
        sample = handle.read(SAMPLE_BYTES)
        if at >= SAMPLE_BYTES and not marked_encoding(sample):
            handle.seek((at - SAMPLE_BYTES // 2) // 4 * 4)
            sample = handle.read(SAMPLE_BYTES)
    likely = likely_encoding(sample)
    if likely == how.encoding:
        likely = None
    name = "UTF-8" if how.encoding == "utf-8" else how.encoding
    where = f"{file.path}, line {line}," if line is not None else str(file.path)
    what = f"byte 0x{error.object[error.start]:02x} at offset {at:,}"
    skip = "" if line is None else "; to leave such lines out: --skip-bad"
    return EncodingError(
        f"{where} is not valid {name}: {what}" + (f"; it looks like {likely}" if likely else ""),
        (
            f"read it in that encoding: --encoding {likely}"
            if likely
            else "name its encoding (--encoding NAME), or put U+FFFD there: --errors replace"
        )
        + skip,
        f"{file.name} ({likely})" if likely else file.name,
    )


def _with_others(error: EncodingError, files: Sequence[SourceFile], how: Reading) -> EncodingError:
    """The error with the names of all files that are in another encoding, up to a number of them."""
    names = [error.what]
    for file in files:
        try:
            for _ in read_chunks(file, how):
                pass
        except EncodingError as other:
            names.append(other.what)
            if len(names) >= _NAMED_FILES:
                break
        except DataError:
            continue  # told once the encodings are mended
    if len(names) == 1:
        return error
    more = ", and perhaps more" if len(names) >= _NAMED_FILES else ""
    return EncodingError(
        f"{error.message}; {len(names)} files are like that: {', '.join(names)}{more}", error.hint, error.what
    )


def _read_jsonl(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk]:
    """Yield one document per line that is not blank: the string in ``field`` of the line's object."""
    for number, (line, read) in enumerate(_lines(file, how, losses), start=1):
        try:
            if isinstance(line, EncodingError):
                raise line
            text = line.removeprefix(_BOM) if number == 1 else line
            document = _document_in(file, number, text, how, losses) if text and not text.isspace() else ""
        except DataError as error:
            if not how.skip_bad:
                raise
            losses.skipped += 1
            losses.why_skipped = losses.why_skipped or error.message
            continue
        if document:
            yield DocumentChunk(f"{file.name}:{number}", document, True, read)


def _json_name(value: object) -> str:
    """The JSON name of the type of ``value``, for readers who do not know Python's names."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict):
        return "an object"
    return "an array" if isinstance(value, list) else "a number"


def _document_in(file: SourceFile, number: int, line: str, how: Reading, losses: Losses) -> str:
    try:
        # Python's int refuses thousands of digits, which JSON allows; no number is used here.
        record = json.loads(line, parse_int=float)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file.path}, line {number} is not JSON: {error}",
            "write one JSON object per line, or leave such lines out: --skip-bad",
        ) from error
    field = how.field
    if not isinstance(record, dict) or field not in record:
        there = f"has {', '.join(map(repr, record))}" if isinstance(record, dict) else "is not an object"
        raise DataError(
            f"{file.path}, line {number} has no field {field!r}: it {there}"[:300],
            "name the field that holds the text (--field NAME), or leave such lines out: --skip-bad",
        )
    text = record[field]
    if not isinstance(text, str):
        raise DataError(
            f"{file.path}, line {number}: the field {field!r} is {_json_name(text)}, not text",
            "leave such lines out (--skip-bad), or name the field that holds the text: --field NAME",
        )
    if _HALF_PAIR.search(text) is None:
        return text
    if how.errors == "strict":
        raise DataError(
            f"{file.path}, line {number}: {field!r} holds half a surrogate pair, which no UTF-8 has",
            "put U+FFFD there (--errors replace), or leave such lines out: --skip-bad",
        )
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    losses.replaced += whole.count(_REPLACEMENT) - text.count(_REPLACEMENT)
    return whole


READERS: dict[str, Reader] = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl}
"""Suffix to reader; every other file is one document of plain text."""
