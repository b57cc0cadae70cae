"""Plain text: a document per file, line or paragraph, or between separators."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from cpulm.data.losses import Losses
from cpulm.data.reading import DocumentChunk, Reading
from cpulm.data.records.template import unescaped
from cpulm.data.sources import SourceFile
from cpulm.data.text_decoding import BOM, decoded_texts

LONG = 1 << 16
"""Characters of a document from which on it is yielded in several chunks."""

_LINE_END = re.compile(r"[\r\n]+")
_BLANK_LINES = re.compile(r"(?:\r\n|\r|\n)(?:[ \t]*(?:\r\n|\r|\n))+")
_LINE_ENDS = "\r\n"
_WHITE = " \t\r\n"


def read_plain_text(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk]:
    """Yield the documents of the file; a byte order mark at its beginning is dropped."""
    texts = _without_mark(decoded_texts(file, how, losses))
    if how.separator:
        separator = unescaped(how.separator)
        border = re.compile(rf"{re.escape(separator)}[\r\n]*")
        return numbered_documents(file.name, split_texts(texts, border, len(separator)))
    if how.document != "file":
        border = _LINE_END if how.document == "line" else _BLANK_LINES
        return numbered_documents(file.name, split_texts(texts, border, 0))
    return one_document(file.name, texts)


def one_document(name: str, texts: Iterable[tuple[str, int]]) -> Iterator[DocumentChunk]:
    """Yield the texts as the chunks of one document."""
    held, held_bytes = "", 0
    for text, read in texts:
        if held and text:
            # One chunk is held back, because the last chunk must be marked as the last.
            yield DocumentChunk(name, held, False, held_bytes)
            held_bytes = 0
        held, held_bytes = text or held, held_bytes + read
    if held:
        yield DocumentChunk(name, held, True, held_bytes)


def numbered_documents(name: str, pieces: Iterable[tuple[str, bool, int]]) -> Iterator[DocumentChunk]:
    """Yield documents named by their number, without those that are only white space."""
    number, begun, read = 1, False, 0
    for text, ends, source_bytes in pieces:
        read += source_bytes
        if begun or (text and not text.isspace()):
            yield DocumentChunk(f"{name}:{number}", text, ends, read)
            begun, read = not ends, 0
            number += ends


def split_texts(
    texts: Iterable[tuple[str, int]], border: re.Pattern[str], longest: int
) -> Iterator[tuple[str, bool, int]]:
    """Cut a stream of text at every match of ``border``, in constant memory.

    Args:
        texts: pieces of the stream, each with the bytes read for it.
        border: what is between two documents; line ends before it belong to neither. It must not begin with
            a repetition, which would take quadratic time.
        longest: how much of a match, beside white space around it, the end of a piece may cut off.

    Yields:
        Parts of documents, whether the document ends there, and the bytes read.
    """
    held, read, begins = "", 0, True
    for text, source_bytes in texts:
        held, read, begin = held + text, read + source_bytes, 0
        if begins:
            held = held.lstrip(_LINE_ENDS)
            begins = not held
        cut: int | None = None
        for match in border.finditer(held):
            if match.end() == len(held) and len(held) - match.start() < LONG:
                cut = match.start()  # the next piece may continue it
                break
            yield held[begin : match.start()].rstrip(_LINE_ENDS), True, read
            begin, read = match.end(), 0
        if len(held) - begin > LONG:
            end = len(held[: len(held) - longest].rstrip(_WHITE)) if cut is None else cut
            end = end if end > begin else len(held) - longest
            yield held[begin:end], False, read
            begin, read = end, 0
        held = held[begin:]
    last = border.search(held)
    yield (held[: last.start()] if last else held).rstrip(_LINE_ENDS), True, read


def _without_mark(texts: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    begins = True
    for text, read in texts:
        yield text.removeprefix(BOM) if begins else text, read
        begins = False
