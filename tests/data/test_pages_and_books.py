"""HTML, Markdown and EPUB to text."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from cpulm.data.formats import html_text
from cpulm.data.readers import read_files
from cpulm.data.reading import DEFAULT, Reading
from cpulm.data.sources import find_files
from cpulm.errors import DataError

PAGE = """<!DOCTYPE html>
<html><head><title>Not text</title><meta charset="utf-8"><style>p { color: red }</style>
<script>if (a < b) { alert("<p>no</p>") }</script></head>
<body><!-- nor this -->
  <h1>Bread  &amp;
     butter</h1>
  <p>One <b>bold</b>, <i>two</i>three &lt;3 caf&eacute;&#33;</p><p>Next<br>line<br/>end
  <ul><li>first</li><li> second </li></ul>
  <pre>  kept
    as it is</pre>
  <table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>
  <noscript>no</noscript><svg><text>no</text></svg>
</body></html>
"""
TEXT = """Bread & butter

One bold, twothree <3 café!

Next
line
end

first
second

  kept
    as it is

a b
c"""


def text_of(path: Path, how: Reading = DEFAULT) -> str:
    found = list(read_files(find_files([str(path)]), how))
    assert [piece.ends for piece in found] == [False] * (len(found) - 1) + [True]
    return "".join(piece.text for piece in found)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_html_is_read_without_tags_scripts_and_styles(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpulm.data.text_decoding._CHUNK_BYTES", chunk)
    path = tmp_path / "page.HTML"
    path.write_text(PAGE, encoding="utf-8")
    assert text_of(path) == TEXT
    assert text_of(path, Reading(format="text")) == PAGE


def test_a_comment_that_is_not_closed_does_not_fill_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html_text, "LONGEST_TAG", 100_000)
    path = tmp_path / "page.html"
    path.write_text("<p>text</p><!-- " + "word " * 200_000)
    with pytest.raises(DataError, match="is not closed") as caught:
        text_of(path)
    assert "--format text" in caught.value.hint


def test_markdown_is_kept_unless_its_marks_are_to_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    source = "# A *title*\n\nText with `code` and [a link](http://x).\n\n- one\n- two\n\n"
    source += "| a | b |\n|---|---|\n| 1 | 2 |\n"
    path.write_text(source)
    assert text_of(path) == source
    assert (
        text_of(path, Reading(format="markdown"))
        == "A title\n\nText with code and a link.\n\none\ntwo\n\na b\n1 2"
    )


INDEX = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf"><manifest>
<item id="two" href="text/chapter%202.xhtml" media-type="application/xhtml+xml"/>
<item id="one" href="text/1.xhtml" media-type="application/xhtml+xml"/>
<item id="cover" href="cover.svg" media-type="image/svg+xml"/>
</manifest><spine><itemref idref="cover"/><itemref idref="one"/><itemref idref="two"/></spine></package>"""
CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
)


def book(path: Path, **parts: str) -> Path:
    content = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": INDEX,
        "OEBPS/text/chapter 2.xhtml": "<html><body><p>The end — ü.</p></body></html>",
        "OEBPS/text/1.xhtml": "<html><head><title>x</title></head><body><p>It begins.</p></body></html>",
        **parts,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return path


def test_a_book_is_read_in_the_order_of_its_spine(tmp_path: Path) -> None:
    path = book(tmp_path / "book.epub")
    assert text_of(path) == "It begins.\n\nThe end — ü.\n\n"
    found = list(read_files(find_files([str(path)]), DEFAULT))
    assert sum(piece.source_bytes for piece in found) == path.stat().st_size


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"META-INF/container.xml": "<container/>"}, "has no list of its chapters"),
        ({"OEBPS/book.opf": "<package"}, "has no list of its chapters"),
        (
            {"META-INF/container.xml": CONTAINER.replace("book.opf", "gone.opf")},
            "lacks its part OEBPS/gone.opf",
        ),
        ({"OEBPS/book.opf": INDEX.replace("1.xhtml", "9.xhtml")}, "lacks its part OEBPS/text/9.xhtml"),
    ],
)
def test_a_book_that_cannot_be_read_is_one_error(tmp_path: Path, parts: dict[str, str], message: str) -> None:
    path = book(tmp_path / "book.epub", **parts)
    with pytest.raises(DataError) as caught:
        text_of(path)
    assert f"{path} {message}" in caught.value.message
    path.write_bytes(b"not a book")
    with pytest.raises(DataError, match="is not a zip archive"):
        text_of(path)
