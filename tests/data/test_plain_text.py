"""Plain text cut into documents: by lines, paragraphs and separators, wherever reading stops."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpulm.data.formats import plain_text
from cpulm.data.readers import read_files
from cpulm.data.reading import DocumentChunk, Reading
from cpulm.data.sources import find_files

LINES = Reading(document="line")
PARAGRAPHS = Reading(document="paragraph")
STORIES = Reading(separator="<|endoftext|>")


def documents(path: Path, how: Reading) -> list[str]:
    """The texts of all documents, put together from their chunks."""
    texts, current = [], ""
    for piece in pieces(path, how):
        current += piece.text
        if piece.ends:
            texts.append(current)
            current = ""
    assert not current, "the last document has no end"
    return texts


def pieces(path: Path, how: Reading) -> list[DocumentChunk]:
    return list(read_files(find_files([str(path)]), how))


CASES = [
    (LINES, "one\ntwo\r\n\n  \nthree", ["one", "two", "three"]),
    (LINES, "\n\none\n", ["one"]),
    (PARAGRAPHS, "\na\nb\n\nc  \n \t\n\n d\r\n\r\ne\r\n", ["a\nb", "c  ", " d", "e"]),
    (STORIES, "Once\nupon.\n<|endoftext|>\n\nThen.<|endoftext|>\n", ["Once\nupon.", "Then."]),
    (STORIES, "<|endoftext|>a<|endoftext|><|endoftext|>b <|end", ["a", "b <|end"]),
    (Reading(separator=r"\n%\n"), "one\n%\ntwo % 2\n%\n", ["one", "two % 2"]),
    (Reading(separator=".*"), "a.*b..c", ["a", "b..c"]),
]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 16])
@pytest.mark.parametrize(("how", "content", "wanted"), CASES)
def test_text_is_cut_wherever_reading_stops(
    tmp_path: Path,
    how: Reading,
    content: str,
    wanted: list[str],
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cpulm.data.text_decoding._CHUNK_BYTES", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode())
    assert documents(path, how) == wanted
    assert [piece.name for piece in pieces(path, how)] == [f"a.txt:{n + 1}" for n in range(len(wanted))]
    assert sum(piece.source_bytes for piece in pieces(path, how)) <= len(content.encode())


@given(st.lists(st.text("ab \n%", max_size=8), max_size=8), st.integers(1, 6))
def test_the_cuts_do_not_depend_on_the_pieces(texts: list[str], longest: int) -> None:
    whole = "".join(texts)
    for border in (plain_text._LINE_END, plain_text._BLANK_LINES):
        cut = [
            [text for text, _, _ in plain_text.split_texts(given, border, 0)]
            for given in ([(whole, 0)], [(text, 0) for text in texts])
        ]
        assert [one for one in cut[0] if one.strip()] == [one for one in cut[1] if one.strip()]


@pytest.mark.parametrize("how", [LINES, PARAGRAPHS, STORIES])
@pytest.mark.parametrize("content", ["word " * 100_000, "x" * 500_000, " " * 300_000 + "end", "\n" * 300_000])
def test_a_long_document_comes_in_chunks_and_loses_nothing(
    tmp_path: Path, how: Reading, content: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode())
    assert max((len(piece.text) for piece in pieces(path, how)), default=0) < 200_000
    assert "".join(documents(path, how)).strip() == content.strip()
