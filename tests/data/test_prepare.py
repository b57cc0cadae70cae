"""From sources and settings to a token folder: split, cache, checks, stop requests."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpulm.data import encode_corpus
from cpulm.data.holdout import name_hash
from cpulm.data.prepare import prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import train_bpe
from cpulm.errors import CpulmError, DataError, ResourceError, SettingsError, StoppedError
from cpulm.events import Event, Notice, Progress
from cpulm.settings import DataSettings

SHAKESPEARE = Path(__file__).parents[2].parent / "shared" / "data" / "tinyshakespeare.txt"
needs_shakespeare = pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="../shared/data is not there")

STORY = "The cat sat on the mat, and the dog said: don't you see? It's 9 o'clock.\n" * 60


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CPULM_CACHE", str(folder))
    return folder


def made(
    *sources: Path | str,
    out: Path | None = None,
    block_size: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    events: list[Event] | None = None,
    **settings: Any,
) -> TokenFolder:
    data = DataSettings(source=[str(source) for source in sources], **{"tokenizer": "byte", **settings})
    emit = (lambda _event: None) if events is None else events.append
    return prepare(data, emit=emit, should_stop=stop, block_size=block_size, out=out)


def story(folder: Path, name: str = "story.txt", text: str = STORY) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def text_of(folder: TokenFolder, split: str) -> str:
    return folder.tokenizer.decode(getattr(folder, split).tolist())


@needs_shakespeare
def test_tinyshakespeare_is_split_as_its_character_protocol_says() -> None:
    folder = made(SHAKESPEARE, tokenizer="char", val_fraction=0.1)
    text = SHAKESPEARE.read_text(encoding="utf-8")
    assert folder.vocab_size == 66
    assert len(folder.train) == 1_003_854 + 1
    assert len(folder.val) == 111_540 + 1
    assert text_of(folder, "train") == text[:1_003_854]
    assert text_of(folder, "val") == text[1_003_854:]
    assert int(folder.train[-1]) == int(folder.val[-1]) == folder.tokenizer.eot_id


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_the_tokens_are_the_texts(tmp_path: Path, kind: str) -> None:
    first, second = story(tmp_path, "a.txt", STORY + "é🙂"), story(tmp_path, "b.txt", STORY[5:])
    folder = made(first, second, tokenizer=kind, vocab_size=290, val_fraction=0.25)
    cut = [int(len(text) * 0.75) for text in (STORY + "é🙂", STORY[5:])]
    assert text_of(folder, "train") == STORY[: cut[0]] + STORY[5:][: cut[1]]
    assert text_of(folder, "val") == (STORY + "é🙂")[cut[0] :] + STORY[5:][cut[1] :]


def test_a_document_that_is_split_ends_in_both_splits(tmp_path: Path) -> None:
    """Else the training part would run into the next document, and no text would ever end."""
    folder = made(story(tmp_path, "a.txt"), story(tmp_path, "b.txt"), val_fraction=0.25)
    for split in (folder.train, folder.val):
        half = len(split) // 2
        assert np.flatnonzero(split == folder.tokenizer.eot_id).tolist() == [half - 1, 2 * half - 1]


def test_meta_counts_what_is_there(tmp_path: Path) -> None:
    folder = made(story(tmp_path, text="ü" * 1000), val_fraction=0.1)
    assert folder.meta["train"]["documents"] == folder.meta["val"]["documents"] == 1
    assert (folder.meta["train"]["bytes"], folder.meta["val"]["bytes"]) == (1800, 200)
    assert (folder.meta["train"]["tokens"], folder.meta["val"]["tokens"]) == (1801, 201)
    assert folder.bytes_per_token == pytest.approx(200 / 201)
    assert folder.meta["files"] == [{"name": "story.txt", "bytes": 2000}]
    assert folder.meta["ends_held_out"] == 1


def test_many_documents_are_assigned_to_splits_by_their_names(tmp_path: Path) -> None:
    names = [f"{number}.txt" for number in range(60)]
    for name in names:
        story(tmp_path / "many", name, f"document {name}\n")
    folder = made(tmp_path / "many", val_fraction=0.3)
    wanted = set(sorted(names, key=name_hash)[:18])
    assert set(text_of(folder, "val").split()) - {"document"} == wanted
    assert set(text_of(folder, "train").split()) - {"document"} == set(names) - wanted
    assert folder.train_documents == 60 - len(wanted)
    assert int(np.count_nonzero(folder.train == folder.tokenizer.eot_id)) == folder.train_documents


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_neither_split_of_many_documents_is_ever_empty(tmp_path: Path, fraction: float) -> None:
    lines = "\n".join(json.dumps({"text": f"line {number} of text"}) for number in range(50))
    folder = made(story(tmp_path, "a.jsonl", lines), val_fraction=fraction)
    assert min(folder.meta["train"]["documents"], folder.meta["val"]["documents"]) == 1
    assert folder.meta["train"]["documents"] + folder.meta["val"]["documents"] == 51


def test_a_validation_text_of_its_own_is_taken_whole(tmp_path: Path) -> None:
    train, val = story(tmp_path, "a.txt"), story(tmp_path, "b.txt", STORY.upper())
    folder = made(train, val_source=[str(val)])
    assert (text_of(folder, "train"), text_of(folder, "val")) == (STORY, STORY.upper())
    assert folder.meta["ends_held_out"] == 0


def test_a_character_that_only_the_validation_text_has_is_in_the_vocabulary(tmp_path: Path) -> None:
    train, val = story(tmp_path, "a.txt"), story(tmp_path, "b.txt", STORY + "ß")
    assert "ß" in text_of(made(train, val_source=[str(val)], tokenizer="char"), "val")


def test_jobs_are_cut_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = story(tmp_path, text=STORY + "x" * 500 + "   \n\n  " + "ab " * 300)
    whole = made(path, tokenizer="bpe", vocab_size=290)
    monkeypatch.setattr(encode_corpus, "JOB_CHARACTERS", 100)
    pieces = made(path, tokenizer="bpe", vocab_size=290, out=tmp_path / "pieces")
    assert pieces.digest == whole.digest


def test_a_large_vocabulary_is_stored_in_32_bits(tmp_path: Path) -> None:
    text = " ".join(f"{number:x}" for number in range(70_000))
    folder = made(story(tmp_path, text=text), tokenizer="word", vocab_size=None, val_fraction=0.01)
    assert folder.vocab_size > 65_536
    assert folder.train.dtype == np.uint32
    assert text_of(folder, "train").split()[:-1] == text.split()[: len(folder.train) - 2]


def test_the_second_time_opens_at_once(tmp_path: Path, cache: Path) -> None:
    path = story(tmp_path)
    first = made(path)
    events: list[Event] = []
    second = made(path, events=events)
    assert [event for event in events if isinstance(event, Progress)] == []
    assert second.path == first.path
    assert cache in second.path.parents


@pytest.mark.parametrize("change", [{"tokenizer": "char"}, {"val_fraction": 0.5}, {"errors": "replace"}])
def test_settings_that_matter_make_new_tokens(tmp_path: Path, change: dict[str, Any]) -> None:
    path = story(tmp_path)
    assert made(path, **change).path != made(path).path


def test_settings_that_do_not_matter_make_none(tmp_path: Path) -> None:
    path = story(tmp_path)
    assert made(path, vocab_size=5000).path == made(path, vocab_size=None).path


def test_a_changed_file_makes_new_tokens(tmp_path: Path) -> None:
    before = made(story(tmp_path))
    after = made(story(tmp_path, text=STORY + "More."))
    assert after.path != before.path
    assert text_of(after, "val").endswith("More.")


def test_damaged_cached_tokens_are_made_again(tmp_path: Path) -> None:
    path = story(tmp_path)
    folder = made(path)
    digest, train = folder.digest, folder.path / "train.bin"
    del folder
    train.write_bytes(train.read_bytes()[:-2])
    events: list[Event] = []
    assert made(path, events=events).digest == digest
    assert [event.level for event in events if isinstance(event, Notice)] == ["warning", "info"]


@pytest.mark.skipif(os.name == "nt", reason="no limit on file sizes to refuse a write")
@pytest.mark.parametrize("room", [0, 3000, 9000])
def test_a_disk_that_fills_is_one_error_and_leaves_nothing(tmp_path: Path, room: int) -> None:
    """Also where only the last flush fails, after which closing the file fails once more."""
    import resource

    (tmp_path / "rhyme.txt").write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 200)
    data = DataSettings(source=[str(tmp_path / "rhyme.txt")], tokenizer="byte", vocab_size=None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(ResourceError, match="no space left to write tokens"):
            prepare(data, emit=lambda _: None, should_stop=lambda: False, out=tmp_path / "tokens")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["rhyme.txt"]


def test_two_at_once_do_each_other_no_harm(tmp_path: Path, cache: Path) -> None:
    path = story(tmp_path)
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(made(path).digest)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 4
    assert len(set(digests)) == 1
    assert len(list((cache / "tokens").iterdir())) == 1


def test_unfinished_folders_of_yesterday_are_deleted_from_the_cache(tmp_path: Path, cache: Path) -> None:
    for name in ("old", "new"):
        (cache / "tokens" / f".{name}.1.tmp").mkdir(parents=True)
    yesterday = time.time() - 90_000
    os.utime(cache / "tokens" / ".old.1.tmp", (yesterday, yesterday))
    made(story(tmp_path))
    assert [path.name for path in (cache / "tokens").glob(".*")] == [".new.1.tmp"]


def test_a_token_folder_is_opened_as_it_is(tmp_path: Path) -> None:
    folder = made(story(tmp_path), tokenizer="bpe", vocab_size=290, out=tmp_path / "tokens")
    again = made(folder.path, tokenizer="bpe", vocab_size=290)
    assert again.path == folder.path
    assert made(folder.path, vocab_size=None).digest == folder.digest
    events: list[Event] = []
    assert made(folder.path, tokenizer="bpe", vocab_size=4096, events=events).digest == folder.digest
    said = "the token folder has a vocabulary of 290, not of 4,096 (data.vocab_size)"
    assert said in [event.message for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_a_vocabulary_is_as_large_as_the_text_fills(tmp_path: Path, kind: str) -> None:
    for _ in range(2):  # built, and found in the cache
        events: list[Event] = []
        size = made(story(tmp_path), tokenizer=kind, vocab_size=100_000, events=events).vocab_size
        said = f"the text fills a vocabulary of {size}, not of 100,000 (data.vocab_size)"
        assert said in [event.message for event in events if isinstance(event, Notice)]
    assert made(story(tmp_path), tokenizer=kind, vocab_size=size).vocab_size == size


def test_the_vocabulary_size_does_not_count_for_bytes(tmp_path: Path) -> None:
    folder = made(story(tmp_path), out=tmp_path / "tokens")
    assert made(folder.path, vocab_size=4096).vocab_size == 257


def test_a_token_folder_mixes_with_nothing(tmp_path: Path) -> None:
    path = story(tmp_path)
    folder = made(path, out=tmp_path / "tokens").path
    with pytest.raises(SettingsError, match="prepared token folder"):
        made(folder, path)
    with pytest.raises(SettingsError, match="prepared token folder"):
        made(folder, val_source=[str(path)])
    with pytest.raises(SettingsError, match="already holds tokens"):
        made(folder, out=tmp_path / "more")


def test_an_existing_tokenizer_is_used(tmp_path: Path) -> None:
    path, tokenizer = story(tmp_path), train_bpe([STORY], 280)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    folder = made(path, tokenizer=str(tmp_path / "tokenizer.json"))
    assert folder.vocab_size == 280
    assert folder.train[:50].tolist() == tokenizer.encode(STORY)[:50]


def test_a_block_larger_than_a_split_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = story(tmp_path, text="x" * 1000)
    assert made(path, block_size=50, val_fraction=0.05).vocab_size == 257
    with pytest.raises(
        SettingsError, match=r"block_size is 51, but the validation split has 51 tokens"
    ) as caught:
        made(path, block_size=51, val_fraction=0.05)
    assert "model.block_size=50" in caught.value.hint
    assert "data.val_fraction" in caught.value.hint
    assert "--val-data" in caught.value.hint


def bad_input(folder: Path) -> dict[str, tuple[list[str], type[CpulmError], str]]:
    """Sources that cannot be used, with the error and what it names."""
    (folder / "nothing").mkdir()
    (folder / "nothing" / "a.bin").write_bytes(bytes(100))
    (folder / "binary.dat").write_bytes(b"\x7fELF\0\0")
    (folder / "latin.txt").write_bytes(STORY.encode() + b"caf\xe9")
    story(folder, "lines.jsonl", '{"text": "fine"}\n{"body": "no"}\n')
    return {
        "empty": ([str(story(folder, "empty.txt", ""))], DataError, "empty.txt has 0 characters"),
        "one word": ([str(story(folder, "word.txt", "hello"))], DataError, "word.txt has 5 characters"),
        "binary": ([str(folder / "binary.dat")], DataError, "binary.dat is a binary file"),
        "no text": ([str(folder / "nothing")], DataError, "all files are binary, such as a.bin"),
        "missing": ([str(folder / "missing.txt")], DataError, "missing.txt does not exist"),
        "latin": ([str(folder / "latin.txt")], DataError, f"0xe9 at offset {len(STORY) + 3:,}"),
        "field": ([str(folder / "lines.jsonl")], DataError, "lines.jsonl, line 2 has no field 'text'"),
    }


CASES = ["empty", "one word", "binary", "no text", "missing", "latin", "field"]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_error_and_leaves_nothing(tmp_path: Path, cache: Path, case: str) -> None:
    source, error, message = bad_input(tmp_path)[case]
    before = sorted(tmp_path.rglob("*"))
    for out in (None, tmp_path / "tokens"):
        with pytest.raises(error) as caught:
            made(*source, out=out)
        assert message in caught.value.message
        assert caught.value.hint
    assert sorted(tmp_path.rglob("*")) == before
    assert not cache.exists()


def test_binary_files_in_a_folder_are_left_out_with_a_notice(tmp_path: Path) -> None:
    story(tmp_path / "mixed")
    (tmp_path / "mixed" / "photo.png").write_bytes(b"\x89PNG\0")
    events: list[Event] = []
    assert made(tmp_path / "mixed", events=events).meta["file_count"] == 1
    (tmp_path / "mixed" / "song.mp3").write_bytes(b"ID3\0")
    made(tmp_path / "mixed", events=events)
    assert [e.message for e in events if isinstance(e, Notice) and "left" in e.message] == [
        "left out the binary file photo.png",
        "left out 2 binary files, such as photo.png",
    ]


def test_bytes_that_are_no_utf8_are_replaced_on_request(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xe9" * 100)
    assert text_of(made(tmp_path / "latin.txt", errors="replace", val_fraction=0.5), "val") == "\ufffd" * 50


def test_an_out_folder_that_is_not_empty_is_refused_unharmed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    kept = story(out, "precious.txt", "mine")
    with pytest.raises(SettingsError, match="exists and is not empty"):
        made(story(tmp_path), out=out)
    assert [path.name for path in out.iterdir()] == ["precious.txt"]
    assert kept.read_text() == "mine"


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SettingsError, match="cannot be the name of a new folder"):
        made(story(tmp_path), out=Path())


def test_an_empty_out_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert made(story(tmp_path), out=tmp_path / "out").path == tmp_path / "out"


def test_an_out_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    file = story(tmp_path)
    with pytest.raises(ResourceError, match="cannot write"):
        made(file, out=file / "tokens")


def test_each_stage_tells_its_progress_and_its_end(tmp_path: Path) -> None:
    events: list[Event] = []
    made(story(tmp_path), tokenizer="bpe", vocab_size=290, events=events)
    stages = [event for event in events if isinstance(event, Progress)]
    names = list(dict.fromkeys(event.stage for event in stages))
    assert names == STAGES
    for name in names:
        mine = [event for event in stages if event.stage == name]
        assert [event.finished for event in mine] == [False] * (len(mine) - 1) + [True]
    assert (stages[-1].done, stages[-1].total) == (len(STORY), len(STORY))


STAGES = ["reading", "sampling the text", "learning the vocabulary", "tokenizing"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stop_ends_any_stage_and_leaves_nothing(tmp_path: Path, cache: Path, stage: str) -> None:
    seen: list[Event] = []

    def stop() -> bool:
        return bool(seen) and isinstance(seen[-1], Progress) and seen[-1].stage == stage

    with pytest.raises(StoppedError, match=f"while {stage}; nothing was written"):
        made(story(tmp_path), tokenizer="bpe", vocab_size=290, stop=stop, events=seen)
    assert isinstance(seen[-1], Progress)
    assert not seen[-1].finished
    assert not cache.exists()
