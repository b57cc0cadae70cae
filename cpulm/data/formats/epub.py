"""EPUB books: a document per book, its chapters in the order of reading (the spine)."""

from __future__ import annotations

import codecs
import posixpath
import zipfile
from collections.abc import Iterator
from urllib.parse import unquote
from xml.etree import ElementTree

from cpulm.data.formats.html_text import TextOfHtml
from cpulm.data.formats.plain_text import one_document
from cpulm.data.losses import Losses
from cpulm.data.packed import open_archive, open_member, require_ratio
from cpulm.data.reading import DocumentChunk, Reading
from cpulm.data.sources import SourceFile
from cpulm.errors import DataError

_LARGEST_INDEX_BYTES = 1 << 24
_LARGEST_CHAPTER_BYTES = 1 << 26
_CONTAINER = "META-INF/container.xml"


def read_epub(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk]:  # noqa: ARG001
    """Yield the text of a book as one document. EPUB is always in UTF-8 or UTF-16."""
    return one_document(file.name, _chapters(file))


def _chapters(file: SourceFile) -> Iterator[tuple[str, int]]:
    with open_archive(file.shown, file.open()) as book:
        spine = _spine(book, file)
        for number, name in enumerate(spine):
            parser = TextOfHtml()
            parser.feed(_text(_content(book, name, file, _LARGEST_CHAPTER_BYTES)))
            parser.close()
            text = parser.take().strip()
            read = file.size * (number + 1) // len(spine) - file.size * number // len(spine)
            yield f"{text}\n\n" if text else "", read


def _spine(book: zipfile.ZipFile, file: SourceFile) -> list[str]:
    """The names of the chapters in the archive, in the order of reading.

    Raises:
        DataError: if the book's index cannot be used.
    """
    try:
        container = ElementTree.fromstring(_content(book, _CONTAINER, file, _LARGEST_INDEX_BYTES))
        package = next(one.attrib["full-path"] for one in container.iter() if _tag(one) == "rootfile")
        index = ElementTree.fromstring(_content(book, package, file, _LARGEST_INDEX_BYTES))
        items = {one.attrib["id"]: one.attrib for one in index.iter() if _tag(one) == "item"}
        order = [items[one.attrib["idref"]] for one in index.iter() if _tag(one) == "itemref"]
    except (ElementTree.ParseError, KeyError, StopIteration) as error:
        raise DataError(f"{file.shown} has no list of its chapters", "it is not an EPUB book") from error
    folder = posixpath.dirname(package)
    return [
        posixpath.normpath(posixpath.join(folder, unquote(item["href"])))
        for item in order
        if "html" in item.get("media-type", "")
    ]


def _content(book: zipfile.ZipFile, name: str, file: SourceFile, most: int) -> bytes:
    try:
        member = book.getinfo(name)
    except KeyError as error:
        raise DataError(f"{file.shown} lacks its part {name}", "it is damaged or incomplete") from error
    if member.file_size > most:
        raise DataError(f"{file.shown}: {name} has {member.file_size:,} bytes", f"at most {most:,} are read")
    require_ratio(f"{file.shown}/{name}", member.file_size, member.compress_size)
    return open_member(book, member, f"{file.shown}/{name}").readall()


def _text(data: bytes) -> str:
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig", "replace")


def _tag(element: ElementTree.Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2]
