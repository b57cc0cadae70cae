"""Parquet and Arrow files: a row is a document."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cpulm.data.losses import Losses
from cpulm.data.readers import read_files
from cpulm.data.reading import DEFAULT, DocumentChunk, Reading
from cpulm.data.sources import find_files
from cpulm.data.split import readable
from cpulm.errors import DataError, SettingsError

COLUMNS: dict[str, list[Any]] = {
    "text": [f"number {n}" for n in range(3000)],
    "n": list(range(3000)),
    "user": [{"name": f"u{n % 3}"} for n in range(3000)],
    "holds": [[[n, 1], [2, 3]] for n in range(3000)],
    "unused": [b"\xff"] * 3000,
}


def table() -> Any:
    return pytest.importorskip("pyarrow").table(COLUMNS)


def written(folder: Path, name: str) -> Path:
    content, path = table(), folder / name
    if name.endswith(".parquet"):
        import pyarrow.parquet

        pyarrow.parquet.write_table(content, path, row_group_size=700)
        return path
    import pyarrow.ipc

    new = pyarrow.ipc.new_file if name.startswith("file") else pyarrow.ipc.new_stream
    with path.open("wb") as file, new(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=700)
    return path


def pieces(path: Path, how: Reading = DEFAULT, losses: Losses | None = None) -> list[DocumentChunk]:
    return list(read_files(readable(find_files([str(path)]), how)[0], how, losses))


NAMES = ["a.parquet", "file.arrow", "stream.arrow"]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_a_document(tmp_path: Path, name: str) -> None:
    path, losses = written(tmp_path, name), Losses()
    found = pieces(path)
    assert [piece.text for piece in found] == COLUMNS["text"]
    assert found[-1].name == f"{name}:3000"
    how = Reading(template="{user.name}:{holds|list}", where=("n>=2990", "user.name=u1"))
    assert [piece.text for piece in pieces(path, how, losses)] == [
        f"u1:{n},1 2,3" for n in (2992, 2995, 2998)
    ]
    assert losses.filtered == 2997
    if name == "a.parquet":
        assert sum(piece.source_bytes for piece in found) == pytest.approx(path.stat().st_size, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_columns_that_do_not_fit_and_damage_are_errors(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    with pytest.raises(DataError, match="has no column 'txt': it has 'text', 'n'") as caught:
        pieces(path, Reading(field="txt"))
    assert "did you mean 'text'?" in caught.value.hint
    assert "--format text" not in caught.value.hint, "it is no text"
    with pytest.raises(DataError, match="row 1: the column 'n' is a number, not text"):
        pieces(path, Reading(field="n"))
    path.write_bytes(path.read_bytes()[:-40] if name != "stream.arrow" else b"not Arrow")
    with pytest.raises(DataError, match="cannot be read"):
        pieces(path)


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match="needs the library pyarrow") as caught:
        pieces(path)
    assert "cpulm[parquet]" in caught.value.hint
