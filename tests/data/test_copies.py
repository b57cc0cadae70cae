"""Validation text inside the source, and texts under two names."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpulm.data.prepare import prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import DataError
from cpulm.events import Event, Notice
from cpulm.settings import DataSettings

STORY = "The cat sat on the mat, and the dog said: don't you see? It's 9 o'clock.\n" * 60


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))


def made(*sources: Path, val_source: list[str], events: list[Event]) -> TokenFolder:
    data = DataSettings(source=[str(one) for one in sources], val_source=val_source, tokenizer="byte")
    return prepare(data, emit=events.append, should_stop=lambda: False)


def story(folder: Path, name: str, text: str = STORY) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def text_of(folder: TokenFolder, split: str) -> str:
    return folder.tokenizer.decode(getattr(folder, split).tolist())


def notices(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize("name", ["valid.txt", "link.txt"])
def test_validation_text_inside_the_source_is_not_trained_on(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "wiki"
    story(folder, "train.txt")
    val = story(folder, "valid.txt", STORY.upper())
    (tmp_path / "link.txt").symlink_to(val)
    events: list[Event] = []
    named = val if name == "valid.txt" else tmp_path / name
    tokens = made(folder, val_source=[str(named)], events=events)
    assert text_of(tokens, "train") == STORY
    assert text_of(tokens, "val") == STORY.upper()
    assert notices(events) == ["not trained on, because it is validation text: valid.txt"]


def test_a_text_that_is_all_validation_text_is_refused(tmp_path: Path) -> None:
    path = story(tmp_path, "a.txt")
    with pytest.raises(DataError, match="all of the training text is the validation text"):
        made(path, val_source=[str(path)], events=[])


def test_a_text_under_two_names_is_warned_of(tmp_path: Path) -> None:
    first, copy, other = (
        story(tmp_path, "a.txt"),
        story(tmp_path, "b.txt"),
        story(tmp_path, "c.txt", STORY[::-1]),
    )
    for sources, val_source, warned in (
        ([first, other], [copy], True),
        ([first, copy], [other], False),
        ([first, copy, other], [], True),
        ([first, other], [], False),
    ):
        events: list[Event] = []
        made(*sources, val_source=[str(path) for path in val_source], events=events)
        assert any("a.txt and b.txt hold the same text: " in text for text in notices(events)) == warned
