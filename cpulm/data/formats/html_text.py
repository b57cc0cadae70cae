"""HTML and Markdown as text: tags dropped, blocks on lines of their own, scripts and styles left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from cpulm.data.formats.plain_text import one_document
from cpulm.data.losses import Losses
from cpulm.data.reading import DocumentChunk, Reading
from cpulm.data.sources import SourceFile
from cpulm.data.text_decoding import decoded_texts
from cpulm.errors import DataError

LONGEST_TAG = 1 << 22
"""Characters of a tag or a comment; a longer one is taken for one that is not closed."""

_LEFT_OUT = {"script", "style", "template", "noscript", "svg", "title"}
_PARAGRAPHS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "ul", "ol", "dl", "table", "hr"}
_LINES = {"br", "div", "li", "tr", "dt", "dd", "section", "article", "header", "footer", "main", "aside"}
_LINES |= {"nav", "figure", "figcaption", "caption", "form", "fieldset", "address", "option", "body"}
_CELLS = {"td", "th"}
_WHITE = re.compile(r"[ \t\r\n\f]+")


class TextOfHtml(HTMLParser):
    """Collects the text of HTML that is fed in parts; white space is collapsed except in ``pre``."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._left_out = 0
        self._preformatted = 0
        self._lines = 0
        self._space = False
        self._begun = False

    def take(self) -> str:
        """The text since the last call."""
        text = "".join(self._parts)
        self._parts.clear()
        return text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._left_out += tag in _LEFT_OUT
        self._border(tag)
        self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        self._left_out = max(0, self._left_out - (tag in _LEFT_OUT))
        self._border(tag)
        self._preformatted = max(0, self._preformatted - (tag == "pre"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._border(tag)

    def handle_data(self, data: str) -> None:
        if self._left_out:
            return
        if self._preformatted:
            self._put(data)
            return
        collapsed = _WHITE.sub(" ", data)
        self._space |= collapsed[:1] == " "
        if text := collapsed.strip(" "):
            self._put(text)
            self._space = collapsed[-1:] == " "

    def _border(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._lines = 2
        elif tag in _LINES:
            self._lines = max(self._lines, 1)
        elif tag in _CELLS:
            self._space = True

    def _put(self, text: str) -> None:
        if self._begun and self._lines:
            self._parts.append("\n" * self._lines)
        elif self._begun and self._space:
            self._parts.append(" ")
        self._parts.append(text)
        self._begun, self._lines, self._space = True, 0, False


def read_html(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk]:
    """Yield the text of the file as one document."""
    return one_document(file.name, _texts(file, how, losses))


def _texts(file: SourceFile, how: Reading, losses: Losses) -> Iterator[tuple[str, int]]:
    parser = TextOfHtml()
    for text, read in decoded_texts(file, how, losses):
        parser.feed(text)
        if len(parser.rawdata) > LONGEST_TAG:
            raise DataError(
                f"{file.shown}: a tag or a comment is not closed for {LONGEST_TAG:,} characters",
                "read the file as it is: --format text",
            )
        yield parser.take(), read
    parser.close()
    yield parser.take(), 0


def read_markdown(file: SourceFile, how: Reading, losses: Losses) -> Iterator[DocumentChunk]:
    """Yield the text of a file in Markdown, without its marks, as one document. It is parsed as a whole."""
    from markdown_it import MarkdownIt

    texts = list(decoded_texts(file, how, losses))
    parser = TextOfHtml()
    parser.feed(MarkdownIt("commonmark").enable("table").render("".join(text for text, _ in texts)))
    parser.close()
    return one_document(file.name, [(parser.take(), sum(read for _, read in texts))])
