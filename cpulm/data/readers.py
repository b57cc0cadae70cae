"""Reads files as documents, in constant memory: each format has a generator that yields chunks of text.

A new format is one module in :mod:`cpulm.data.formats` and one entry in :data:`FORMATS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from cpulm.data.encodings import is_text_in, likely_encoding
from cpulm.data.formats.columnar import read_arrow, read_parquet
from cpulm.data.formats.delimited import read_csv, read_tsv
from cpulm.data.formats.epub import read_epub
from cpulm.data.formats.html_text import read_html, read_markdown
from cpulm.data.formats.json_array import read_json
from cpulm.data.formats.json_lines import read_json_lines
from cpulm.data.formats.plain_text import read_plain_text
from cpulm.data.losses import Losses
from cpulm.data.reading import DEFAULT, DocumentBlock, DocumentChunk, EncodingError, Reader, Reading
from cpulm.data.sources import Meter, SourceFile
from cpulm.data.text_decoding import encoding_of
from cpulm.errors import DataError, SettingsError

_SNIFFED_BYTES = 1 << 13
_NAMED_FILES = 10

_OF_ROWS = ("field", "template", "chat", "loss_after", "where", "row_weight", "skip_bad")
_OF_TEXT = ("document", "separator")


class Format(NamedTuple):
    """A format of files.

    Attributes:
        read: yields the documents of a file.
        suffixes: of the files that are read so if nothing else is said.
        options: the settings that have an effect in this format only, or in few.
        description: a word for messages.
        is_text: whether a file that holds zero bytes is not of this format.
    """

    read: Reader
    suffixes: tuple[str, ...]
    options: tuple[str, ...]
    description: str
    is_text: bool = True


FORMATS = {
    "text": Format(read_plain_text, (), _OF_TEXT, "plain text"),
    "jsonl": Format(read_json_lines, (".jsonl", ".ndjson"), _OF_ROWS, "JSON lines"),
    "json": Format(read_json, (".json",), _OF_ROWS, "a JSON array"),
    "csv": Format(read_csv, (".csv",), _OF_ROWS, "CSV"),
    "tsv": Format(read_tsv, (".tsv",), _OF_ROWS, "TSV"),
    "parquet": Format(read_parquet, (".parquet",), _OF_ROWS, "Parquet", is_text=False),
    "arrow": Format(read_arrow, (".arrow",), _OF_ROWS, "Arrow", is_text=False),
    "html": Format(read_html, (".html", ".htm", ".xhtml"), (), "HTML"),
    "markdown": Format(read_markdown, (), (), "Markdown"),
    "epub": Format(read_epub, (".epub",), (), "an EPUB book", is_text=False),
}
"""By the names that ``data.format`` takes; a file with another suffix is plain text."""

_BY_SUFFIX = {suffix: name for name, one in FORMATS.items() for suffix in one.suffixes}


def read_files(
    files: Sequence[SourceFile], how: Reading, losses: Losses | None = None
) -> Iterator[DocumentChunk]:
    """Yield the documents of all files once each, as :func:`read_file` does for one."""
    how = how.once
    for number in range(len(files)):
        for piece in read_file(files, number, how, losses):
            yield from (piece,) if isinstance(piece, DocumentChunk) else piece.chunks()


def read_file(
    files: Sequence[SourceFile],
    number: int,
    how: Reading,
    losses: Losses | None = None,
    part: SourceFile | None = None,
) -> Iterator[DocumentChunk | DocumentBlock]:
    """Yield the documents of one of ``files``, or of a ``part`` of it, as :func:`read_blocks`.

    Raises:
        DataError: as :func:`read_blocks`; if it is in another encoding, all later ones like that are named.
    """
    try:
        yield from read_blocks(files[number] if part is None else part, how, losses)
    except EncodingError as error:
        raise _with_others(error, files[number + 1 :], how) from error


def read_chunks(file: SourceFile, how: Reading, losses: Losses | None = None) -> Iterator[DocumentChunk]:
    """Yield the documents of ``file`` as :func:`read_blocks`, one by one."""
    for piece in read_blocks(file, how, losses):
        yield from (piece,) if isinstance(piece, DocumentChunk) else piece.chunks()


def read_blocks(
    file: SourceFile, how: Reading, losses: Losses | None = None
) -> Iterator[DocumentChunk | DocumentBlock]:
    """Yield the documents of ``file`` in order, each as one or more chunks, or many at once.

    Empty documents are left out.

    Args:
        file: the file to read; its suffix chooses the format, unless ``how`` names one.
        how: how to read it. The built-in text is always read with replacements, as plain text.
        losses: counts what is lost.

    Raises:
        DataError: naming the file and the byte offset or row that cannot be used.
    """
    if file.builtin:
        how = Reading(errors="replace", format="text")
    meter = Meter() if file.is_packed else None
    try:
        file = replace(file, meter=meter) if meter else file
        if FORMATS[format_of(file, how)].is_text:
            how = how._replace(encoding=encoding_of(file, how))
        pieces: Iterator[DocumentChunk | DocumentBlock]
        pieces = FORMATS[format_of(file, how)].read(file, how, losses or Losses())
        yield from _metered(pieces, meter) if meter else pieces
    except OSError as error:
        raise DataError(f"cannot read {file.shown}: {error.strerror}", "check its permissions") from error


def _metered(
    pieces: Iterator[DocumentChunk | DocumentBlock], meter: Meter
) -> Iterator[DocumentChunk | DocumentBlock]:
    """The same pieces, with the bytes of the packed file that were read for each."""
    for piece in pieces:
        yield piece._replace(source_bytes=meter.advance())


def format_of(file: SourceFile, how: Reading) -> str:
    """The format that a file is read in: a name out of :data:`FORMATS`."""
    return _BY_SUFFIX.get(file.suffix, "text") if how.format == "auto" else how.format


def is_binary(file: SourceFile, how: Reading = DEFAULT) -> bool:
    """Whether the file is read as text, but its first 8 KiB hold a zero byte and are not UTF-16 or the like.

    Raises:
        DataError: if the file cannot be opened.
    """
    if not FORMATS[format_of(file, how)].is_text:
        return False
    try:
        with file.open() as handle:
            data = handle.read(_SNIFFED_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {file.shown}: {error.strerror}", "check its permissions") from error
    return b"\0" in data and not is_text_in(data, likely_encoding(data) or how.encoding)


def check_settings(files: Sequence[SourceFile], how: Reading) -> None:
    """Refuse settings that would have no effect on any of the files.

    Raises:
        SettingsError: naming the setting, and what the files are read as.
    """
    if how.format not in ("auto", *FORMATS):
        near = difflib.get_close_matches(how.format, FORMATS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SettingsError(
            f"data.format = {how.format!r}: there is no such format",
            f"{hint}Formats: auto, {', '.join(FORMATS)}",
        )
    for option in unused_settings(files, how):
        fitting = [name for name, one in FORMATS.items() if option in one.options]
        others, verb = (f" and {len(files) - 1:,} more", "are") if len(files) > 1 else ("", "is")
        read_as = FORMATS[format_of(files[0], how)].description
        raise SettingsError(
            f"data.{option} has no effect: {files[0].name}{others} {verb} read as {read_as}",
            f"it is for {', '.join(fitting)}; if the suffix does not tell the format, name it: "
            f"--format {fitting[0]}",
        )


def unused_settings(files: Sequence[SourceFile], how: Reading) -> dict[str, Any]:
    """The settings of rows and of plain text that have no effect on any of the files, with their defaults."""
    read = [file for file in files if not file.builtin]
    used = {option for file in read for option in FORMATS[format_of(file, how)].options}
    return {
        option: getattr(DEFAULT, option)
        for option in (*_OF_ROWS, *_OF_TEXT)
        if files and option not in used and getattr(how, option) != getattr(DEFAULT, option)
    }


def _with_others(error: EncodingError, files: Sequence[SourceFile], how: Reading) -> EncodingError:
    """The error with the names of all files that are in another encoding, up to a number of them."""
    found = [error]
    for file in files:
        try:
            for _ in read_chunks(file, how):
                pass
        except EncodingError as other:
            found.append(other)
            if len(found) >= _NAMED_FILES:
                break
        except DataError:
            continue  # told once the encodings are mended
    if len(found) == 1:
        return error
    more = ", and perhaps more" if len(found) >= _NAMED_FILES else ""
    names = ", ".join(one.what for one in found)
    several = len({one.likely for one in found}) > 1
    hint = "they are in several encodings: convert them to UTF-8, such as by iconv -f cp1252 -t utf-8"
    return EncodingError(
        f"{error.message}; {len(found)} files are like that: {names}{more}",
        hint if several else error.hint,
        error.name,
        error.likely,
    )
