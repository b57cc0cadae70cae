"""The cache of token folders: what is in it, how it is pruned, and what happens if it cannot be written."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cpulm.data.prepare import prepare
from cpulm.data.token_cache import list_cached, prune
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import ResourceError
from cpulm.events import Event, Notice
from cpulm.settings import DataSettings

STORY = "The cat sat on the mat, and the dog said: don't you see?\n" * 60
DAY = 86_400.0


@pytest.fixture(autouse=True)
def cache(in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CPULM_CACHE", str(in_empty_folder / "cache"))
    return in_empty_folder / "cache"


def made(name: str, events: list[Event] | None = None) -> TokenFolder:
    Path(name).write_text(name + STORY, encoding="utf-8")
    os.utime(name, (0, 0))
    emit = (lambda _event: None) if events is None else events.append
    return prepare(DataSettings(source=[name], tokenizer="byte"), emit=emit, should_stop=lambda: False)


def age(folder: Path, days: float) -> None:
    moment = time.time() - days * DAY
    os.utime(folder, (moment, moment))


def test_the_cache_is_listed_the_last_used_first() -> None:
    first, second = made("first.txt"), made("second.txt")
    age(first.path, 2)
    age(second.path, 1)
    listed = list_cached()
    assert [one.source for one in listed] == [("second.txt",), ("first.txt",)]
    assert (listed[0].tokenizer, listed[0].vocab_size) == ("byte", 257)
    assert listed[0].tokens == len(second.train) + len(second.val)
    assert listed[0].size_bytes > 2 * listed[0].tokens
    made("first.txt")
    assert [one.source for one in list_cached()] == [("first.txt",), ("second.txt",)]


def test_what_was_not_used_for_long_is_deleted(cache: Path) -> None:
    old, new = made("old.txt").path, made("new.txt").path
    age(old, 31)
    (cache / "kernels").mkdir()
    assert [one.path for one in prune(30 * DAY)] == [str(old)]
    assert [one.path for one in list_cached()] == [str(new)]
    assert (cache / "kernels").is_dir()


def test_a_damaged_folder_is_listed_and_deleted_too() -> None:
    folder = made("a.txt").path
    (folder / "meta.json").write_text("{}")
    assert [one.tokenizer for one in list_cached()] == ["damaged"]
    assert len(prune(0.0)) == 1
    assert list_cached() == []


@pytest.mark.parametrize("why", ["it is a file", "the system refuses its name"])
def test_a_cache_that_cannot_be_written_is_replaced_by_a_folder_beside_the_runs(
    cache: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file")
    if why != "it is a file":  # as to root, too, whom no folder is closed to
        monkeypatch.setenv("CPULM_CACHE", str(cache.with_name("x" * 300)))
    events: list[Event] = []
    folder = made("a.txt", events)
    assert folder.path.parent == Path("runs/.tokens").absolute()
    warnings = [one.message for one in events if isinstance(one, Notice) and one.level == "warning"]
    assert len(warnings) == 1
    assert "CPULM_CACHE" in warnings[0]
    again: list[Event] = []
    assert made("a.txt", again).path == folder.path
    assert [one for one in again if isinstance(one, Notice) and one.level == "warning"] == []


def test_if_neither_can_be_written_the_error_names_the_variable(cache: Path) -> None:
    cache.write_text("a file")
    Path("runs").write_text("a file")
    with pytest.raises(ResourceError, match="cannot write tokens to") as caught:
        made("a.txt")
    assert "CPULM_CACHE" in caught.value.hint
