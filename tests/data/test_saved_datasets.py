"""Datasets of Hugging Face: saved in a folder, or loaded by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cpulm.data.readers import read_files
from cpulm.data.reading import Reading
from cpulm.data.saved_datasets import is_saved_dataset
from cpulm.data.sources import absolute_sources, find_files
from cpulm.errors import DataError, SettingsError
from cpulm.settings import DataSettings


def saved(folder: Path, texts: list[str]) -> None:
    """A dataset as ``save_to_disk`` writes it."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.ipc

    folder.mkdir(parents=True)
    content = pa.table({"body": texts})
    name = "data-00000-of-00001.arrow"
    with (folder / name).open("wb") as file, pyarrow.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (folder / "dataset_info.json").write_text("{}")


def texts_of(source: str) -> list[str]:
    return [piece.text for piece in read_files(find_files([source]), Reading(field="body"))]


def test_a_saved_dataset_is_its_rows_and_not_the_files_beside_them(tmp_path: Path) -> None:
    saved(tmp_path / "one", ["a", "b"])
    assert texts_of(str(tmp_path / "one")) == texts_of(f"hf:{tmp_path / 'one'}") == ["a", "b"]
    assert [file.name for file in find_files([str(tmp_path / "one")])] == ["one/data-00000-of-00001.arrow"]


def test_a_split_is_named_behind_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "all" / "train", ["a"])
    saved(tmp_path / "all" / "test", ["c"])
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert texts_of(str(tmp_path / "all")) == ["a"]
    assert texts_of(f"hf:{tmp_path / 'all'}:test") == ["c"]
    with pytest.raises(DataError, match="has no split 'val': it has train, test") as caught:
        texts_of(f"hf:{tmp_path / 'all'}:val")
    assert ":train" in caught.value.hint
    monkeypatch.chdir(tmp_path)
    data = absolute_sources(DataSettings(source=["hf:all:test", "hf:some/name:test"]))
    assert data.source == [f"hf:{tmp_path / 'all'}:test", "hf:some/name:test"]


def test_a_folder_that_may_not_be_entered_is_none() -> None:
    assert not is_saved_dataset(Path("x" * 300))


def test_a_damaged_saved_dataset_is_one_error(tmp_path: Path) -> None:
    saved(tmp_path / "one", ["a"])
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        texts_of(str(tmp_path / "one"))


@pytest.mark.parametrize("source", ["hf:", "hf:a:b:c:d"])
def test_a_name_that_is_none_is_one_error(source: str) -> None:
    with pytest.raises(DataError, match="does not name a dataset"):
        find_files([source])


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SettingsError, match="hf:some/name needs the library datasets") as caught:
        find_files(["hf:some/name"])
    assert "cpulm[datasets]" in caught.value.hint


def test_a_dataset_that_cannot_be_loaded_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        find_files(["hf:cpulm/no-such-dataset"])
    assert "network" in caught.value.hint
