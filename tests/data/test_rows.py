"""Rows from files to token folders: the split, the cache, conditions and duplicates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpulm.data.prepare import prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import DataError
from cpulm.events import Event, Notice
from cpulm.settings import DataSettings

STORY = "The cat sat on the mat, and the dog said: don't you see? It's 9 o'clock.\n" * 60


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))


def made(*sources: Path, events: list[Event] | None = None, **settings: Any) -> TokenFolder:
    data = DataSettings(source=[str(source) for source in sources], tokenizer="byte", **settings)
    emit = (lambda _event: None) if events is None else events.append
    return prepare(data, emit=emit, should_stop=lambda: False)


def story(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def text_of(folder: TokenFolder, split: str) -> str:
    return folder.tokenizer.decode(getattr(folder, split).tolist())


ROWS = "grade,holds\n" + "".join(f'7{"ABC"[n % 3]},"[[{n % 11}, {n % 18}], [3, 8]]"\n' for n in range(400))


def test_rows_are_held_out_by_their_share_of_bytes_as_documents_are(tmp_path: Path) -> None:
    path = story(tmp_path, "routes.csv", ROWS)
    folder = made(path, template="{grade} {holds|list}", val_fraction=0.1)
    train, val = folder.meta["train"], folder.meta["val"]
    assert train["documents"] + val["documents"] == 400
    assert val["bytes"] / (train["bytes"] + val["bytes"]) == pytest.approx(0.1, rel=0.125)
    eot = folder.tokenizer.eot_id
    assert np.count_nonzero(np.concatenate([folder.train, folder.val]) == eot) == 400


@pytest.mark.parametrize(
    "change",
    [
        {"template": "{holds|list}"},
        {"where": ["grade=7A"]},
        {"dedup": True},
        {"format": "text", "template": ""},
    ],
)
def test_tokens_of_other_templates_and_choices_are_not_taken_from_the_cache(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = story(tmp_path, "routes.csv", ROWS)
    common: dict[str, Any] = {"template": "{grade} {holds|list}"}
    folder = made(path, **common)
    assert made(path, **common).path == folder.path
    assert made(path, **{**common, **change}).digest != folder.digest


def test_what_conditions_and_duplicates_leave_out_is_said(tmp_path: Path) -> None:
    path = story(tmp_path, "routes.csv", ROWS)
    events: list[Event] = []
    folder = made(path, template="{grade} {holds|list}", where=["grade<7C"], dedup=True, events=events)
    said = [event.message for event in events if isinstance(event, Notice)]
    assert "left out 133 rows that data.where does not choose" in said
    distinct = {f"{'ABC'[n % 3]} {n % 11} {n % 18}" for n in range(400) if n % 3 < 2}
    assert f"left out {267 - len(distinct)} documents that were there before" in said
    assert folder.meta["train"]["documents"] + folder.meta["val"]["documents"] == len(distinct)


def test_if_nothing_is_left_it_is_said_why(tmp_path: Path) -> None:
    path = story(tmp_path, "routes.csv", ROWS)
    with pytest.raises(DataError, match=r"left out 400 rows that data.where does not choose") as caught:
        made(path, field="grade", where=["grade=9A"])
    assert "--where" in caught.value.hint
    with pytest.raises(
        DataError, match=r"400 rows were left out, the first because .*, line 2: .* is not a number"
    ):
        made(path, template="{grade|round:1}", skip_bad=True)


def test_training_text_that_is_in_the_validation_text_is_left_out_with_dedup(tmp_path: Path) -> None:
    long = "A long document that comes in several chunks. " * 8000
    lines = [json.dumps({"text": text}) for text in (STORY, "one", "two", "one")]
    train = story(tmp_path, "a.jsonl", "\n".join(lines))
    more, same = story(tmp_path, "long.txt", long), story(tmp_path, "other/long.txt", long + " ")
    val = story(tmp_path, "val.jsonl", json.dumps({"text": "two " * 20}) + "\n" + json.dumps({"text": "two"}))
    copy = story(tmp_path, "copy.txt", long)
    folder = made(train, more, same, copy, val_source=[str(val)], dedup=True)
    assert text_of(folder, "train") == STORY + "one" + long + long + " "
    assert text_of(folder, "val") == "two " * 20 + "two"
