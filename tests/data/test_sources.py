"""Sources as a user names them, and their files and documents."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from cpulm.data.losses import Losses
from cpulm.data.readers import check_settings, is_binary, read_chunks, read_files
from cpulm.data.reading import DEFAULT, DocumentChunk, Reading
from cpulm.data.sources import find_files
from cpulm.errors import DataError, SettingsError

REPLACE = Reading(errors="replace")


def documents(path: Path, how: Reading = DEFAULT, losses: Losses | None = None) -> list[str]:
    """The texts of all documents, put together from their pieces."""
    texts, current = [], ""
    for piece in pieces(path, how, losses):
        current += piece.text
        if piece.ends:
            texts.append(current)
            current = ""
    assert not current, "the last document has no end"
    return texts


def pieces(path: Path, how: Reading = DEFAULT, losses: Losses | None = None) -> list[DocumentChunk]:
    return list(read_files(find_files([str(path)]), how, losses))


def write(path: Path, content: str | bytes = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_folder_is_read_by_name_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", ".git/config", "a/.hidden", ".env", "a/b/c.py"):
        write(tmp_path / name)
    assert [file.name for file in find_files([str(tmp_path)])] == ["a/b/c.py", "a/z.md", "b.txt"]


def test_a_glob_names_files_from_its_fixed_part_on(tmp_path: Path) -> None:
    for name in ("x/1.txt", "x/y/2.txt", "x/3.md"):
        write(tmp_path / name)
    assert [file.name for file in find_files([str(tmp_path / "**" / "*.txt")])] == ["x/1.txt", "x/y/2.txt"]
    assert [file.name for file in find_files([str(tmp_path / "x" / "?.md")])] == ["3.md"]


def test_an_existing_name_with_brackets_is_not_a_glob(tmp_path: Path) -> None:
    path = write(tmp_path / "notes [1].txt")
    assert [file.at for file in find_files([str(path)])] == [str(path)]


def test_each_file_comes_once_and_no_two_share_a_name(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1" / "a.txt"), write(tmp_path / "2" / "a.txt")
    files = find_files([str(first), str(tmp_path / "1"), str(second), str(second)])
    assert [file.at for file in files] == [str(first), str(second)]
    assert len({file.name for file in files}) == 2


def test_a_list_of_many_files_is_small(tmp_path: Path) -> None:
    """There may be a million."""
    count, folder = 500, tmp_path / "notes"
    for number in range(count):
        write(folder / f"{number}.txt")
    find_files([str(folder)])  # imports what it needs
    tracemalloc.start()
    try:
        files = find_files([str(folder)])
        size, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(files) == count
    assert size < 500 * count
    assert most < 700 * count


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.txt", "does not exist"),
        ("missing/*.txt", "no file matches"),
        ("builtin:perl", "no built-in text"),
        ("empty", "has no files"),
    ],
)
def test_a_source_that_names_nothing_is_refused(in_empty_folder: Path, source: str, message: str) -> None:
    (in_empty_folder / "empty").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        find_files([source])
    assert source in caught.value.message
    assert caught.value.hint


def test_the_builtin_text_is_the_library_without_its_tests() -> None:
    files = find_files(["builtin:python"])
    names = [file.name for file in files]
    assert {"argparse.py", "json/decoder.py", "asyncio/base_events.py"} <= set(names)
    assert names == sorted(names)
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]
    assert 5_000_000 < sum(file.size for file in files) < 40_000_000
    assert files == find_files(["builtin:python"])


def test_a_text_file_is_one_document_with_its_line_ends(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "a.txt", "one\r\ntwo\n\n")) == ["one\r\ntwo\n\n"]
    assert documents(write(tmp_path / "b.txt", "\ufeffone")) == ["one"]
    assert documents(write(tmp_path / "c.txt", "")) == []
    assert documents(write(tmp_path / "d.txt", "\ufeff")) == []


@pytest.mark.parametrize("size", [65535, 65536, 65537, 300_000])
def test_characters_across_the_borders_of_reading_stay_whole(tmp_path: Path, size: int) -> None:
    text = "x" + "é🙂" * (size // 6) + "end"
    read = pieces(write(tmp_path / "a.txt", text))
    assert "".join(piece.text for piece in read) == text
    assert [piece.ends for piece in read] == [False] * (len(read) - 1) + [True]
    assert sum(piece.source_bytes for piece in read) == len(text.encode())


@pytest.mark.parametrize("before", [0, 5, 65535, 150_001])
def test_invalid_utf8_is_named_with_its_offset(tmp_path: Path, before: int) -> None:
    path = write(tmp_path / "a.txt", b"x" * before + b"\xe9t\xe9")
    with pytest.raises(DataError, match=f"0xe9 at offset {before:,}") as caught:
        documents(path)
    assert str(path) in caught.value.message
    assert documents(path, REPLACE) == ["x" * before + "\ufffdt\ufffd"]


def test_a_character_cut_off_at_the_end_is_invalid(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a€".encode()[:-1])
    with pytest.raises(DataError, match="offset 1"):
        documents(path)
    assert documents(path, REPLACE) == ["a\ufffd"]


def test_a_jsonl_line_is_a_document(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "one\n"}), "", '  {"n": 1, "text": "zwei ü"}', '{"text": ""}']
    path = write(tmp_path / "a.jsonl", "\ufeff" + "\n".join(lines))
    assert documents(path) == ["one\n", "zwei ü"]
    assert [piece.name for piece in pieces(path)] == ["a.jsonl:1", "a.jsonl:3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x"}', r"line 2 has no field 'text': it has 'body'"),
        ('["text"]', "line 2 has no field 'text': it is not an object"),
        ('{"text": 5}', "line 2: the field 'text' is a number, not text"),
        ('{"text": null}', "line 2: the field 'text' is null, not text"),
        ('{"text": ["a"]}', "line 2: the field 'text' is an array, not text"),
        ('{"text": "x"', "line 2 is not JSON"),
        ('{"text": "\\ud83d"}', "line 2: 'text' holds half a surrogate pair"),
    ],
)
def test_a_jsonl_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        documents(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_jsonl_reads_another_field_and_replaces_on_request(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", b'{"body": "a\xff"}\n{"body": "\\ud83d\\ude42 \\ud83d"}\n')
    assert documents(path, Reading("body", "replace")) == ["a\ufffd", "🙂 \ufffd"]


def test_zero_bytes_make_a_file_binary(tmp_path: Path) -> None:
    binary, text = write(tmp_path / "a.bin", b"PNG\0\1"), write(tmp_path / "a.txt")
    assert [is_binary(file) for file in find_files([str(binary), str(text)])] == [True, False]


def test_a_file_that_vanished_is_one_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    file = find_files([str(path)])[0]
    path.unlink()
    with pytest.raises(DataError, match="cannot read"):
        list(read_chunks(file, Reading()))


FRENCH = "Le garçon a été étonné ; où est « l’été » ?\n" * 20
ENCODED = [
    (FRENCH, "cp1252", "cp1252"),
    (FRENCH, "utf-16", "utf-16"),
    (FRENCH, "utf-32", "utf-32"),
    ("plain ASCII in two bytes a letter\n" * 20, "utf-16", "utf-16"),
    (FRENCH, "utf-16-be", "utf-16-be"),
    ("你好世界。" * 400, "utf-16", "utf-16"),
    ("他们说这个国家的人在时间上有一个问题，我不知道。" * 20, "gb2312", "gb18030"),
    ("吾輩は猫である。名前はまだ無い。" * 20, "shift_jis", "shift_jis"),
    ("Всё смешалось в доме Облонских. " * 20, "koi8_r", "koi8_r"),
    ("Всё смешалось в доме Облонских. " * 20, "cp1251", "cp1251"),
]


@pytest.mark.parametrize(("text", "encoding", "likely"), ENCODED)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_text_in_another_encoding_is_one_error_that_names_it_and_the_option_reads_it(
    tmp_path: Path, text: str, encoding: str, likely: str, name: str
) -> None:
    content = text if name == "a.txt" else json.dumps({"text": text}, ensure_ascii=False) + "\n"
    path = write(tmp_path / name, content.encode(encoding))
    with pytest.raises(DataError, match="is not valid UTF-8") as caught:
        documents(path)
    assert f"it looks like {likely}" in caught.value.message
    assert f"--encoding {likely}" in caught.value.hint
    assert not is_binary(find_files([str(path)])[0])
    assert documents(path, Reading(encoding=likely)) == [text]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_ascii_in_several_bytes_a_letter_is_not_taken_for_utf8(
    tmp_path: Path, encoding: str, name: str
) -> None:
    text = "the cat sat\n" * 20
    content = text if name == "a.txt" else json.dumps({"text": text}) + "\n"
    path = write(tmp_path / name, content.encode(encoding))
    with pytest.raises(DataError, match=f"holds a NUL near offset [01].* looks like {encoding}") as caught:
        documents(path)
    assert f"--encoding {encoding}" in caught.value.hint
    assert documents(path, Reading(encoding=encoding)) == [text]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_the_zeros_that_a_crash_leaves_at_the_end_are_no_text(tmp_path: Path, name: str) -> None:
    line = b"the cat sat\n" if name == "a.txt" else b'{"text": "the cat sat"}\n'
    path = write(tmp_path / name, line * 1000 + b"\0" * 5000)
    with pytest.raises(DataError, match=f"holds a NUL near offset {len(line) * 1000:,}") as caught:
        documents(path)
    assert "remove it, or put U+FFFD there: --errors replace" in caught.value.hint
    losses = Losses()
    how = Reading(errors="replace", skip_bad=True)
    assert "\0" not in "".join(documents(path, how, losses))
    assert losses.replaced == 5000


def test_an_encoding_is_for_files_that_are_not_utf8(tmp_path: Path) -> None:
    write(tmp_path / "1.txt", "été")
    write(tmp_path / "2.txt", "été".encode("cp1252"))
    write(tmp_path / "3.txt", "日本".encode("iso2022_jp"))
    assert documents(tmp_path, Reading(encoding="cp1252"))[:2] == ["été", "été"]
    assert documents(tmp_path / "3.txt", Reading(encoding="iso2022_jp")) == ["日本"]


def test_a_few_wrong_bytes_in_utf8_are_not_taken_for_another_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", FRENCH.encode() + b"\xe9 ")
    with pytest.raises(DataError, match="not valid UTF-8") as caught:
        documents(path)
    assert "looks like" not in caught.value.message
    assert "--errors replace" in caught.value.hint


def test_all_files_in_another_encoding_are_named(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.txt", FRENCH.encode("utf-8" if number == 1 else "cp1252"))
    with pytest.raises(DataError) as caught:
        documents(tmp_path)
    assert "3 files are like that: 0.txt (cp1252), 2.txt (cp1252), 3.txt (cp1252)" in caught.value.message
    assert "--encoding cp1252" in caught.value.hint
    write(tmp_path / "4.txt", ("Всё смешалось в доме. " * 20).encode("koi8_r"))
    with pytest.raises(DataError, match=r"4\.txt \(koi8_r\)") as caught:
        documents(tmp_path)
    assert "several encodings: convert them to UTF-8" in caught.value.hint


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_is_replaced_is_counted(tmp_path: Path, name: str) -> None:
    text = b'{"text": "caf\xe9 \xef\xbf\xbd caf\xe9"}'
    losses = Losses()
    documents(write(tmp_path / name, text), REPLACE, losses)
    assert losses.replaced == 2
    assert any("in 2 places" in line for line in losses.in_words())


def test_bad_lines_are_left_out_on_request_and_counted(tmp_path: Path) -> None:
    good = b'{"text": "fine"}\n'
    bad = [
        b'{"event": 1}',
        b'{"text": 5}',
        b"not JSON",
        b'{"text": "caf\xe9"}',
        b'{"text": "\\ud83d"}',
        b"[" * 9999,
    ]
    path = write(tmp_path / "a.jsonl", good + b"\n".join(bad) + b"\n" + good)
    for line in bad:
        with pytest.raises(DataError, match="line 1") as caught:
            documents(write(tmp_path / "one.jsonl", line + b"\n"))
        assert "--skip-bad" in caught.value.hint
    losses = Losses()
    assert documents(path, Reading(skip_bad=True), losses) == ["fine", "fine"]
    assert losses.skipped == len(bad)
    assert "6 rows were left out, the first because" in losses.in_words()[0]
    assert "line 2 has no field 'text'" in losses.in_words()[0]


def test_a_number_of_thousands_of_digits_is_json(tmp_path: Path) -> None:
    line = '{"n": ' + "9" * 5000 + ', "text": "fine", "m": -' + "8" * 5000 + "}\n"
    assert documents(write(tmp_path / "a.jsonl", line)) == ["fine"]


def test_the_built_in_text_is_always_read_as_it_is() -> None:
    with pytest.raises(SettingsError, match=r"data\.document has no effect"):
        check_settings(find_files(["builtin:python"])[:2], Reading(document="line"))


@pytest.mark.parametrize(
    ("names", "how", "said"),
    [
        (["a.txt"], Reading(field="body"), "data.field has no effect: a.txt is read as plain text"),
        (
            ["a.txt", "b.md"],
            Reading(template="{a}"),
            "a.txt and 1 more are read as plain text",
        ),
        (["a.txt"], Reading(where=("a=1",)), "data.where has no effect"),
        (["a.txt"], Reading(skip_bad=True), "data.skip_bad has no effect"),
        (["a.csv"], Reading(separator="%"), "data.separator has no effect: a.csv is read as CSV"),
        (["a.csv"], Reading(document="line"), "data.document has no effect"),
        (["a.csv"], Reading(field="body", format="text"), "data.field has no effect"),
        (["a.csv"], Reading(format="cvs"), "there is no such format"),
        (["a.txt", "c.jsonl"], Reading(field="body"), None),
        (["a.txt"], Reading(field="body", format="csv"), None),
        (["a.csv", "b.json", "c.tsv"], Reading(template="{a}", where=("a=1",), skip_bad=True), None),
    ],
)
def test_a_setting_without_effect_is_an_error(
    tmp_path: Path, names: list[str], how: Reading, said: str | None
) -> None:
    files = find_files([str(write(tmp_path / name)) for name in names])
    if said is None:
        check_settings(files, how)
        return
    with pytest.raises(SettingsError, match=said) as caught:
        check_settings(files, how)
    assert caught.value.hint
