"""The data of a run that is resumed: from another folder, moved, changed, or damaged in the cache."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from small_runs import of, record, resume, settings_for, train
from tokenizers import pre_tokenizers

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.data import vocabulary
from cpulm.data.splitting import splitting_pattern
from cpulm.data.token_cache import list_cached
from cpulm.data.tokenizer import Tokenizer, train_bpe
from cpulm.errors import DataError
from cpulm.events import Event, Notice
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.training import run as runs

TEXT = "the cat sat on the mat and saw the rat.\n" * 60


@pytest.fixture
def stopped(tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped, begun in ``work`` with relative names; the process is elsewhere now."""
    (tmp_path / "work" / "notes").mkdir(parents=True)
    for name in ("a.txt", "b.txt"):
        (tmp_path / "work" / "notes" / name).write_text(f"{name} {TEXT}", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "work")
    train(settings_for(Path("notes")), tmp_path / "run", stop_at=4)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def stored(run: Path) -> Settings:
    return resolve(config=run / "settings.yaml")


def resume_with(run: Path, text: Path) -> list[Event]:
    seen: list[Event] = []
    runs.resume(run, {}, {"data.source": [str(text)]}, show=seen.append, record=record)
    return seen


def clear_cache() -> None:
    for one in list_cached():
        shutil.rmtree(one.path)


def test_sources_are_stored_with_their_whole_paths(stopped: Path, tmp_path: Path) -> None:
    assert stored(stopped).data.source == [str(tmp_path / "work" / "notes")]
    clear_cache()
    resume(stopped)
    assert checkpoints.load(stopped / "latest.pt").step == 12


def test_a_text_that_was_moved_is_named_anew(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "notes").rename(tmp_path / "moved")
    clear_cache()
    with pytest.raises(DataError, match="notes does not exist") as caught:
        resume(stopped)
    assert "--data" in caught.value.hint
    os.chdir(tmp_path)
    resume_with(stopped, Path("moved"))
    assert checkpoints.load(stopped / "latest.pt").step == 12
    assert stored(stopped).data.source == [str(tmp_path / "moved")]


def test_tokens_are_made_again_with_the_vocabulary_of_the_run(
    tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions of cpulm split text as GPT-2 does."""

    def train_as_before(texts: Iterable[str], vocab_size: int) -> Tokenizer:
        inner = train_bpe(texts, vocab_size).inner
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return Tokenizer(inner)

    (tmp_path / "notes.txt").write_text(TEXT, encoding="utf-8")
    vocabulary_settings = ("data.tokenizer=bpe", "data.vocab_size=270")
    with monkeypatch.context() as before:
        before.setattr(vocabulary, "train_bpe", train_as_before)
        train(settings_for(tmp_path / "notes.txt", *vocabulary_settings), tmp_path / "run", stop_at=4)
    clear_cache()
    resume(tmp_path / "run")
    finished = checkpoints.load(tmp_path / "run" / "latest.pt")
    assert finished.step == 12
    assert splitting_pattern(json.loads(finished.tokenizer_json)) == "gpt2"


def test_another_text_is_refused(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(DataError, match=r"other\.txt gives other tokens than the run was trained on"):
        resume_with(stopped, tmp_path / "other.txt")
    assert stored(stopped).data.source == [str(tmp_path / "work" / "notes")]


@pytest.mark.parametrize("name", ["train.bin", "meta.json", "tokenizer.json"])
def test_damaged_tokens_in_the_cache_are_made_again(stopped: Path, name: str) -> None:
    (one,) = list_cached()
    (Path(one.path) / name).write_bytes(b"damage")
    events, _ = resume(stopped)
    assert any("building it again" in notice.message for notice in of(Notice, events))
    assert checkpoints.load(stopped / "latest.pt").step == 12
