"""CSV, TSV and JSON arrays: rows become documents, and rows that cannot be used are named."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from cpulm.data.formats import delimited, json_array
from cpulm.data.losses import Losses
from cpulm.data.readers import read_chunks, read_files
from cpulm.data.reading import DEFAULT, DocumentChunk, Reading
from cpulm.data.sources import find_files
from cpulm.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")

ROUTES = 'id,grade,holds\n1,6B+,"[[5, 4], [3, 8]]"\n2,7A,"[[10, 4]]"\n3,7A,[]\n'
HOLDS = Reading(template="{grade} {holds|list}")


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pieces(path: Path, how: Reading = DEFAULT, losses: Losses | None = None) -> list[DocumentChunk]:
    return list(read_files(find_files([str(path)]), how, losses))


def texts(path: Path, how: Reading = DEFAULT, losses: Losses | None = None) -> list[str]:
    return [piece.text for piece in pieces(path, how, losses)]


def test_a_row_is_a_document_made_by_the_template(tmp_path: Path) -> None:
    path = written(tmp_path, "routes.csv", ROUTES)
    found = pieces(path, HOLDS)
    assert [piece.text for piece in found] == ["6B+ 5,4 3,8", "7A 10,4", "7A "]
    assert [piece.name for piece in found] == ["routes.csv:2", "routes.csv:3", "routes.csv:4"]
    assert all(piece.ends for piece in found)
    assert texts(path, Reading(field="grade")) == ["6B+", "7A", "7A"]


def test_conditions_choose_rows_and_the_others_are_counted(tmp_path: Path) -> None:
    path, losses = written(tmp_path, "routes.csv", ROUTES), Losses()
    assert texts(path, HOLDS._replace(where=("grade>=7A", "id<3")), losses) == ["7A 10,4"]
    assert losses.filtered == 2
    assert losses.choices_in_words() == ["left out 2 rows that data.where does not choose"]
    assert losses.in_words() == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,n\n"a, ""b""\nc",1\nd,2\n'),
        ("a.csv", 'text,n\r\n"a, ""b""\nc",1\r\n\r\nd,2\r\n'),
        ("a.csv", '\ufefftext;n\n"a, ""b""\nc";1\nd;2'),
        ("a.csv", ' text |"n, m; o"\n"a, ""b""\nc"|1\nd|2\n'),
        ("a.TSV", 'n\ttext\n1\t"a, ""b""\nc"\n2\td\n'),
    ],
)
def test_quotes_delimiters_line_ends_and_marks(tmp_path: Path, name: str, content: str) -> None:
    assert texts(written(tmp_path, name, content)) == ['a, "b"\nc', "d"]


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_a_table_in_another_encoding(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, "a.csv", 'text,n\n"café,\nau lait",1\n'.encode(encoding))
    assert texts(path, Reading(encoding=encoding)) == ["café,\nau lait"]


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("grade,holds\n7A,x\n", "has no column 'text': it has 'grade', 'holds'", "--template"),
        ("txt,n\na,1\n", "has no column 'text'", "did you mean 'txt'?"),
        ("text,text\na,b\n", "has two columns 'text'", "line 1"),
    ],
)
def test_columns_that_do_not_fit_are_an_error(tmp_path: Path, content: str, message: str, hint: str) -> None:
    path = written(tmp_path, "a.csv", content)
    for how in (DEFAULT, Reading(skip_bad=True)):
        with pytest.raises(DataError, match=message) as caught:
            texts(path, how)
        assert str(path) in caught.value.message
        assert hint in caught.value.hint


@pytest.mark.parametrize("how", [Reading(template="{text} {grad}"), Reading(where=("grad=1",))])
def test_a_column_of_a_template_or_a_condition_that_is_not_there(tmp_path: Path, how: Reading) -> None:
    path = written(tmp_path, "a.csv", "text,grade\na,1\n")
    with pytest.raises(DataError, match="has no column 'grad': it has 'text', 'grade'") as caught:
        texts(path, how)
    assert "did you mean 'grade'?" in caught.value.hint


BAD_ROWS = {
    b"one,two,three": "line 3 has 3 cells, but there are 2 columns",
    b"alone": "line 3 has 1 cells, but there are 2 columns",
    b'"a"b,1': "line 3 is not CSV",
    b'"caf\xe9\nx",1': "line 3, is not valid UTF-8",
    b"text,many": "line 3: column 'n': 'many' is not a number",
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.items())
def test_a_row_that_cannot_be_used_is_named_and_left_out_on_request(
    tmp_path: Path, row: bytes, message: str
) -> None:
    path = written(tmp_path, "a.csv", b'text,n\n"first",1\n' + row + b"\nlast,2\n")
    how = Reading(template="{text} {n|round:0}")
    with pytest.raises(DataError) as caught:
        texts(path, how)
    assert f"{path}, {message}" in caught.value.message
    assert "--skip-bad" in caught.value.hint
    losses = Losses()
    assert texts(path, how._replace(skip_bad=True), losses) == ["first 1", "last 2"]
    assert losses.skipped == 1
    assert message in losses.in_words()[0]


def test_a_quote_that_is_not_closed_is_an_error_even_if_bad_rows_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'text,n\na,1\n"b,2\n' + "c,3\n" * 10)
    for how in (DEFAULT, Reading(skip_bad=True)):
        with pytest.raises(DataError, match="line 3: a quote opens here and is not closed up to line 13"):
            texts(path, how)


def test_a_cell_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "LARGEST_CELL", 1000)
    path = written(tmp_path, "a.csv", "text,n\n" + "a" * 900 + ',1\n"' + "b\n" * 900 + '",2\n')
    with pytest.raises(DataError, match="line 3: a quote opens here"):
        texts(path)


def test_the_bytes_of_all_rows_are_those_of_the_file(tmp_path: Path) -> None:
    for name, content in {
        "a.csv": "text,n\n" + "some text,1\n" * 20_000,
        "a.json": json.dumps([{"text": f"number {n}"} for n in range(20_000)], indent=1),
    }.items():
        path = written(tmp_path, name, content)
        found = pieces(path)
        assert len(found) == 20_000
        assert path.stat().st_size - 10 <= sum(piece.source_bytes for piece in found) <= path.stat().st_size


ELEMENTS = [{"text": "one", "n": 1}, {"text": "zwei [}] ü", "more": {"a": [1, {}]}}, {"text": "3" * 70_000}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("elements", [ELEMENTS, ELEMENTS * 30, []])
def test_a_json_array_is_read_element_by_element(
    tmp_path: Path, indent: int | None, elements: list[dict[str, object]]
) -> None:
    path = written(tmp_path, "a.json", "\ufeff " + json.dumps(elements, indent=indent) + " \n")
    found = pieces(path)
    assert [piece.text for piece in found] == [element["text"] for element in elements]
    assert [piece.name for piece in found] == [f"a.json:{n + 1}" for n in range(len(elements))]


@pytest.mark.parametrize("cut", range(0, 40))
def test_a_json_array_is_read_wherever_the_reading_stops(
    tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpulm.data.text_decoding._CHUNK_BYTES", 40 - cut)
    path = written(tmp_path, "a.json", '[ {"text": "a"} , {"text":"b, ]"}\n,\n{"text": "c"}\n]\n')
    assert texts(path) == ["a", "b, ]", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, {"text": "b"]', "is not JSON at element 2"),
        ('[{"text": "a"} {"text": "b"}]', "is not JSON after element 1: , or ] is missing"),
        ('[{"text": "a"}', "is not JSON after element 1"),
        ('[{"text": "a"}, 5]', "element 2 has no field 'text': it is not an object"),
        ('[{"text": "a"}, {"body": "b"}]', "element 2 has no field 'text': it has 'body'"),
        ("[" * 100_000, "is not JSON at element 1: it is nested too deep"),
    ],
)
def test_a_json_array_that_cannot_be_used_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path, "a.json", content)
    with pytest.raises(DataError) as caught:
        texts(path)
    assert f"{path}" in caught.value.message
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.json", {"template": "{text}"}),
        ("a.jsonl", {"template": "{text|round:1}"}),
        ("a.jsonl", {"where": ("text=1",)}),
    ],
)
def test_a_value_nested_at_any_depth_is_text_or_an_error_that_names_the_row(
    tmp_path: Path, name: str, how: dict[str, Any]
) -> None:
    """Some depths can be parsed, but not be written as text again."""
    refused = 0
    for depth in (*range(860, 1000, 3), 100_000):
        row = '{"text": ' + "[" * depth + "]" * depth + "}"
        path = written(tmp_path, name, f"[{row}]" if name == "a.json" else row)
        with contextlib.suppress(DataError):
            texts(path, Reading(**how))
            continue
        with pytest.raises(DataError, match=r"(line|element) 1.* (nested too deep|not a number)"):
            texts(path, Reading(**how))
        refused += 1
    assert refused


def test_an_element_that_never_ends_is_not_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "LARGEST_ELEMENT", 100_000)
    path = written(tmp_path, "a.json", '[{"text": "' + "a" * 10_000_000)
    with pytest.raises(DataError, match="is not JSON at element 1"):
        texts(path)


def test_a_json_file_that_is_no_array_is_plain_text_unless_rows_are_wanted(tmp_path: Path) -> None:
    path = written(tmp_path, "package.json", '{"name": "x"}')
    assert texts(path) == ['{"name": "x"}']
    for how in (Reading(field="name"), Reading(format="json")):
        with pytest.raises(DataError, match="is not an array of JSON objects"):
            texts(path, how)


@pytest.mark.parametrize(
    ("field", "message", "hint"),
    [
        ("a.bb", "has no field 'a.bb': 'a' has no field 'bb': it has 'b', 'l'", "did you mean 'b'?"),
        ("a.b.c", "has no field 'a.b.c': 'a.b' is 'words'", "--field NAME"),
        ("a.l.1", "has no field 'a.l.1': 'a.l' is [0]", "--field NAME"),
    ],
)
def test_a_nested_field_that_is_not_there_is_told_from_the_one_around_it(
    tmp_path: Path, field: str, message: str, hint: str
) -> None:
    path = written(tmp_path, "a.jsonl", json.dumps({"a": {"b": "words", "l": [0]}}))
    with pytest.raises(DataError) as caught:
        texts(path, Reading(field=field))
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("how", [Reading(where=("txet=a",)), Reading(row_weight="txet")])
def test_a_column_beside_the_text_that_is_not_there_is_not_told_as_the_text(
    tmp_path: Path, how: Reading
) -> None:
    path = written(tmp_path, "a.csv", "text,n\na,1\n")
    with pytest.raises(DataError, match="has no column 'txet'") as caught:
        list(read_chunks(find_files([str(path)])[0], how))
    assert "--field" not in caught.value.hint


def test_nested_fields_and_json_lines_by_name_of_the_format(tmp_path: Path) -> None:
    path = written(tmp_path, "log", '{"a": {"b": "x"}, "n": 1}\n{"a": {"b": "y"}, "n": 2.5}\n')
    assert texts(path, Reading(field="a.b", format="jsonl")) == ["x", "y"]
    assert texts(path, Reading(template="{n}{a.b}", format="jsonl")) == ["1x", "2.5y"]


@needs_shared
def test_moonboard_routes() -> None:
    path = SHARED / "moonboard-val.csv"
    how = Reading(template="{grade} {full_path|each:'x{0} y{1}'|list}", where=("path_length>3",))
    found = texts(path, how)
    assert 0 < len(found) <= 828
    assert found[0].split()[1].startswith("x")
