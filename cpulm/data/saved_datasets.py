"""Datasets of Hugging Face, by name or saved in a folder, as the Arrow files that hold their rows."""

from __future__ import annotations

from pathlib import Path

from cpulm.cache_dir import expand_home
from cpulm.data.extras import library
from cpulm.errors import DataError
from cpulm.regular_file import read_regular
from cpulm.typed_json import parse_json

PREFIX = "hf:"
_STATE = "state.json"
_MOST_BYTES = 1 << 26
_SPLITS = "dataset_dict.json"
_DEFAULT_SPLIT = "train"


def is_saved_dataset(folder: Path) -> bool:
    """Whether the library datasets wrote ``folder`` with ``save_to_disk``."""
    try:
        return (folder / _SPLITS).is_file() or (
            (folder / _STATE).is_file() and (folder / "dataset_info.json").is_file()
        )
    except OSError:  # it may not be entered; who lists it says so
        return False


def dataset_files(source: str) -> list[Path]:
    """The Arrow files of ``hf:NAME``, ``hf:NAME:SPLIT``, ``hf:NAME:CONFIG:SPLIT``, ``hf:FOLDER:SPLIT``.

    The split is ``train`` if none is named. The library datasets looks a name up, and loads its data if they
    are not on this machine yet; a folder needs no library.

    Raises:
        DataError: if there is no such dataset or split, or no network to load it.
        SettingsError: if the library datasets is missing.
    """
    name, *rest = source.removeprefix(PREFIX).split(":")
    if not name or len(rest) > 2:
        raise DataError(f"{source} does not name a dataset", "write hf:NAME or hf:NAME:SPLIT")
    split = rest[-1] if rest else _DEFAULT_SPLIT
    folder = expand_home(name)
    if is_saved_dataset(folder):
        return saved_files(folder, split)
    return _loaded_files(source, name, rest[0] if len(rest) == 2 else None, split)


def saved_files(folder: Path, split: str = _DEFAULT_SPLIT) -> list[Path]:
    """The files of a split of a saved dataset, or of a saved dataset that has no splits.

    Raises:
        DataError: if there is no such split, or the folder is damaged.
    """
    try:
        if (folder / _SPLITS).is_file():
            splits = parse_json(read_regular(folder / _SPLITS, _MOST_BYTES))["splits"]
            if split not in splits:
                raise DataError(
                    f"the dataset {folder} has no split {split!r}: it has {', '.join(splits)}",
                    f"name one of them: hf:{folder}:{splits[0] if splits else 'SPLIT'}",
                )
            folder = folder / split
        state = parse_json(read_regular(folder / _STATE, _MOST_BYTES))
        return [folder / one["filename"] for one in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the dataset in {folder} cannot be read: {error}", "save it again") from error


def _loaded_files(source: str, name: str, configuration: str | None, split: str) -> list[Path]:
    datasets = library("datasets", what=source, package="datasets", extra="datasets")
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(name, configuration, split=split)
    except Exception as error:  # of the library, of the network, of the file system
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"the dataset {source} cannot be loaded: {reason}",
            "check the name, the split and the network; what save_to_disk wrote is read without one",
        ) from error
    return [Path(one["filename"]) for one in loaded.cache_files]
