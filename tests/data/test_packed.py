"""Compressed files and zip archives: read as what they hold, and refused if they hold too much."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cpulm.data import packed
from cpulm.data.readers import read_files
from cpulm.data.reading import DEFAULT, DocumentChunk, Reading
from cpulm.data.sources import find_files
from cpulm.data.split import readable
from cpulm.errors import DataError, SettingsError

ROWS = b"".join(json.dumps({"text": f"number {n}"}).encode() + b"\n" for n in range(5000))


def zstd(data: bytes) -> bytes:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    compressed: bytes = pytest.importorskip(name).compress(data)
    return compressed


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def pieces(source: Path, how: Reading = DEFAULT) -> list[DocumentChunk]:
    return list(read_files(readable(find_files([str(source)]), how)[0], how))


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("suffix", PACK)
def test_a_compressed_file_is_read_as_what_it_holds(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(PACK[suffix](ROWS))
    found = pieces(path)
    assert [piece.text for piece in found] == [f"number {n}" for n in range(5000)]
    assert found[0].name == f"rows.jsonl{suffix}:1"
    assert sum(piece.source_bytes for piece in found) == path.stat().st_size


@pytest.mark.parametrize("suffix", PACK)
def test_a_damaged_compressed_file_is_one_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    for data in (PACK[suffix](ROWS)[:-200], b"this is not compressed"):
        path.write_bytes(data)
        with pytest.raises(DataError, match="cannot be unpacked") as caught:
            pieces(path)
        assert "damaged or incomplete" in caught.value.hint


def test_the_place_of_a_wrong_byte_is_that_in_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"text " * 40_000 + b"caf\xe9 noir, \xe0 la carte" + b" text" * 40_000))
    with pytest.raises(DataError, match="0xe9 at offset 200,003") as caught:
        pieces(path)
    assert "--encoding cp1252" in caught.value.hint
    assert "café noir, à la carte" in "".join(
        piece.text for piece in pieces(path, Reading(encoding="cp1252"))
    )


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_bomb_is_refused_before_it_is_read_whole(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "FREE_BYTES", 1 << 20)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](b"a" * (20 << 20)))
    chunks = read_files(find_files([str(path)]), DEFAULT)
    read = [next(chunks) for _ in range(10)]
    with pytest.raises(DataError, match=rf"{path.name} unpacks to more than 200 times"):
        read.extend(chunks)
    assert sum(len(piece.text) for piece in read) < 10 << 20


def test_a_zip_archive_is_a_folder(tmp_path: Path) -> None:
    members = {
        "b/rows.jsonl": ROWS,
        "a.txt": b"text",
        "c.txt.gz": gzip.compress(b"packed twice"),
        ".hidden": b"no",
        "__MACOSX/a.txt": b"no",
        "picture.png": b"PNG\0\1",
    }
    path = zipped(tmp_path / "texts.zip", members)
    files, left_out = readable(find_files([str(path)]), DEFAULT)
    assert [file.name for file in files] == [
        "texts.zip/a.txt",
        "texts.zip/b/rows.jsonl",
        "texts.zip/c.txt.gz",
    ]
    assert left_out == ["texts.zip/picture.png"]
    found = pieces(path)
    assert [found[0].text, found[1].text, found[-1].text] == ["text", "number 0", "packed twice"]
    assert len({file.place for file in files}) == 3
    assert [piece.text for piece in pieces(tmp_path)] == [piece.text for piece in found]
    total = sum(file.size for file in files)
    assert total * 0.9 <= sum(piece.source_bytes for piece in found) <= total


def test_an_error_in_a_member_names_archive_and_member(tmp_path: Path) -> None:
    path = zipped(tmp_path / "texts.zip", {"in/rows.jsonl": b'{"body": 1}'})
    with pytest.raises(DataError) as caught:
        pieces(path)
    assert f"{path}/in/rows.jsonl, line 1 has no field 'text'" in caught.value.message


def spoiled(data: bytes) -> dict[str, tuple[bytes, str]]:
    encrypted = bytearray(data)
    encrypted[data.index(b"PK\1\2") + 8] |= 1
    return {
        "not one": (b"this is not an archive", "is not a zip archive"),
        "cut off": (data[:-30], "is not a zip archive"),
        "encrypted": (bytes(encrypted), "a.txt is encrypted"),
        "changed": (data.replace(b"stored text", b"another one"), "cannot be unpacked"),
    }


@pytest.mark.parametrize("case", ["not one", "cut off", "encrypted", "changed"])
def test_an_archive_that_cannot_be_used_is_one_error(tmp_path: Path, case: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "stored text")
    data, message = spoiled(buffer.getvalue())[case]
    path = tmp_path / "texts.zip"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        pieces(path)
    assert caught.value.hint


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "FREE_BYTES", 1 << 20)
    path = zipped(tmp_path / "texts.zip", {"a.txt": b"a" * (5 << 20)})
    with pytest.raises(DataError, match=r"texts.zip/a.txt unpacks to more than 200 times"):
        find_files([str(path)])


def test_without_the_library_a_zst_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("compression", "compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"x")
    with pytest.raises(SettingsError, match=r"needs the library backports.zstd") as caught:
        pieces(path)
    assert "cpulm[zstd]" in caught.value.hint
