"""A share of a large file: what of it is read, and that nothing else is."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cpulm.data import prepare as preparing
from cpulm.data import stretches as reading_stretches
from cpulm.data.reading import DocumentBlock, Reading
from cpulm.data.sources import SourceFile, find_files
from cpulm.data.split import Chosen, numbered
from cpulm.data.spool import FileBytes
from cpulm.data.stretches import FileStretch, has_stretches, stretches
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import DataError
from cpulm.settings import DataSettings

STRETCH = 1000


@pytest.fixture(autouse=True)
def _short_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_stretches, "STRETCH_BYTES", STRETCH)
    monkeypatch.setattr(reading_stretches, "LARGE_BYTES", 10 * STRETCH)
    monkeypatch.setattr(reading_stretches, "_FIRST_LOOK", 16)
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))


def file_of(path: Path, text: str) -> SourceFile:
    path.write_bytes(text.encode())
    return find_files([str(path)])[0]


def contents(file: SourceFile, how: Reading, share: float) -> list[bytes]:
    return [part.file.open().read() for part in stretches(file, how, share)]


def rows(seed: int, longest: int) -> str:
    draw = random.Random(seed)
    return "".join(
        json.dumps({"text": "é" * draw.randint(0, longest)}, ensure_ascii=False) + "\n" for _ in range(300)
    )


TEXTS: dict[str, tuple[str, dict[str, Any], str, bytes]] = {
    "lines": ("a.txt", {}, "".join(f"line {n} é\n" for n in range(3000)), b"\n"),
    "a single line": ("a.txt", {}, "é€😀" * 5000, b""),
    "carriage returns": ("a.txt", {"document": "line"}, "one line\r\n" * 3000, b"\n"),
    "paragraphs": ("a.txt", {"document": "paragraph"}, "a\nb\n\n" * 4000, b"\n\n"),
    "separators": ("a.txt", {"separator": r"\n==\n"}, "a\nb\n==\n" * 4000, b"\n==\n"),
    "separators far apart": ("a.txt", {"separator": "=="}, ("a\n" * 900 + "==") * 20, b""),
    "rows": ("a.jsonl", {}, rows(1, 200), b"\n"),
    "rows longer than stretches": ("a.jsonl", {}, rows(2, 3000), b"\n"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_all_stretches_are_the_file_and_begin_where_lines_do(tmp_path: Path, name: str) -> None:
    at, settings, text, end = TEXTS[name]
    file, how = file_of(tmp_path / at, text), Reading(**settings)
    assert has_stretches(file, how)
    whole = contents(file, how, 1.0)
    assert b"".join(whole) == text.encode()
    assert len(whole) > 10
    assert all(part.endswith(end) for part in whole[:-1])
    assert all(part.decode() for part in whole)  # no character is cut
    for share in (0.1, 0.34, 0.9):
        chosen = contents(file, how, share)
        assert set(chosen) <= set(whole)
        if "longer" not in name:
            assert len(chosen) / len(whole) == pytest.approx(share, abs=1.5 / len(whole))


def test_stretches_are_spread_evenly_and_count_what_is_between_them(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.txt", "".join(f"line {n}\n" for n in range(10_000)))
    found: list[FileStretch] = list(stretches(file, Reading(), 0.2))
    begins = [part.file.begin for part in found]
    gaps = [later - earlier for earlier, later in pairwise(begins)]
    assert all(abs(gap - 5 * STRETCH) < 20 for gap in gaps)
    end = 0
    for part in found:
        assert part.file.begin == end + part.skipped_bytes
        end = part.file.begin + part.file.size
    assert len({part.file.name for part in found}) == len(found)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("a.txt", {}, True),
        ("a.jsonl", {}, True),
        ("a.csv", {}, False),  # a quoted cell may have line ends
        ("a.csv", {"format": "text"}, True),
        ("a.txt", {"encoding": "utf-16"}, False),
        ("a.txt.gz", {}, False),
    ],
)
def test_only_what_can_be_read_from_the_middle_is(
    tmp_path: Path, name: str, settings: dict[str, Any], expected: bool
) -> None:
    file = file_of(tmp_path / name, "text\n" * 3000)
    assert has_stretches(file, Reading(**settings)) is expected
    assert not has_stretches(file_of(tmp_path / name, "text\n" * 1000), Reading(**settings))


def prepared(path: Path, **settings: Any) -> TokenFolder:
    data = DataSettings(source=[str(path)], tokenizer="byte", **settings)
    return preparing.prepare(data, emit=lambda _: None, should_stop=lambda: False)


@pytest.mark.parametrize("name", ["lines", "rows"])
def test_of_a_large_file_hardly_more_than_the_share_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(reading_stretches, "STRETCH_BYTES", 1 << 14)
    monkeypatch.setattr(reading_stretches, "_FIRST_LOOK", 1 << 10)
    at, settings, text, _ = TEXTS[name]
    size = file_of(tmp_path / at, text * 100).size
    read = 0
    original = FileBytes.readinto

    def counted(self: FileBytes, buffer: Any) -> int:
        nonlocal read
        read += (count := original(self, buffer))
        return count

    monkeypatch.setattr(FileBytes, "readinto", counted)
    folder = prepared(tmp_path / at, share=0.1, **settings)
    used = folder.meta["train"]["bytes"] + folder.meta["val"]["bytes"]
    if name == "rows":
        text = "".join(json.loads(row)["text"] for row in text.splitlines())
    assert used / len(text.encode() * 100) == pytest.approx(0.1, rel=0.15)
    assert read < 2 * 0.25 * size  # once to scan, once to encode
    assert 0.02 < folder.meta["val"]["bytes"] / used < 0.1


def test_a_weight_below_one_is_a_share_of_its_source(tmp_path: Path) -> None:
    file_of(tmp_path / "a.txt", "".join(f"line {n}\n" for n in range(10_000)))
    other = file_of(tmp_path / "b.txt", "other\n" * 100)
    data = DataSettings(
        source=[str(tmp_path / "a.txt"), other.at], weights=[0.25, 1.0], tokenizer="byte", val_fraction=0.1
    )
    meta = preparing.prepare(data, emit=lambda _: None, should_stop=lambda: False).meta
    size = (tmp_path / "a.txt").stat().st_size
    assert meta["train"]["bytes"] + meta["val"]["bytes"] == pytest.approx(0.25 * size + other.size, rel=0.1)


def test_an_error_says_from_where_a_line_is_counted(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"row {n}"}) for n in range(3000)]
    lines[1500] = "broken"
    file_of(tmp_path / "a.jsonl", "".join(line + "\n" for line in lines))
    with pytest.raises(DataError) as raised:
        prepared(tmp_path / "a.jsonl", share=0.99)
    words = raised.value.message
    assert "a.jsonl from byte " in words
    begin = int(words.split("from byte ")[1].split(" on")[0].replace(",", ""))
    number = int(words.split("line ")[1].split(" ")[0])
    assert (tmp_path / "a.jsonl").read_bytes()[begin:].split(b"\n")[number - 1] == b"broken"


@pytest.mark.parametrize("rows_in_a_group", [100, 3000, 50_000])
def test_of_a_large_parquet_file_batches_of_rows_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_in_a_group: int
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": [f"row {n} of many" for n in range(20_000)]})
    parquet.write_table(table, path := tmp_path / "a.parquet", row_group_size=rows_in_a_group)
    monkeypatch.setattr("cpulm.data.formats.columnar._BATCH_ROWS", 50)
    read: list[int] = []
    original = parquet.ParquetFile.iter_batches

    def noted(self: Any, batch_size: int, groups: list[int], *more: Any, **options: Any) -> Any:
        read.extend(groups)
        return original(self, batch_size, groups, *more, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", noted)
    file = find_files([str(path)])[0]
    pieces = [
        one.piece if isinstance(one, Chosen) else one.block for one in numbered([file], Reading(), share=0.1)
    ]
    assert len(set(read)) <= (40 if rows_in_a_group == 100 else 7)  # of 200; of 7 and of 1
    found = [
        chunk
        for piece in pieces
        for chunk in (piece.chunks() if isinstance(piece, DocumentBlock) else [piece])
    ]
    assert len(found) == pytest.approx(2000, abs=50)
    for chunk in found:
        number = int(chunk.name.removeprefix("a.parquet:")) - 1
        assert chunk.text == f"row {number} of many"
    starts = [int(chunk.name.removeprefix("a.parquet:")) - 1 for chunk in found if chunk.name.endswith("1")]
    assert max(later - earlier for earlier, later in pairwise(starts)) < 1000
    assert sum(piece.source_bytes for piece in pieces) == pytest.approx(file.size, rel=0.05)
