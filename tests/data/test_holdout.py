"""The validation split: a share of the bytes, chosen by hashes of names, for any document sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cpulm.data.holdout import DocumentSizes, HeldOut, name_hash, name_hashes
from cpulm.data.prepare import fitting_block, prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.events import Event, Notice
from cpulm.settings import DataSettings

LINE = "she walks by the river, and the wind is long and grey.\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))


def folder_of(folder: Path, sizes: list[int], fraction: float = 0.05) -> tuple[TokenFolder, list[str]]:
    """Tokens of a folder with files of these sizes in bytes, and the notices that were given."""
    folder.mkdir()
    for number, size in enumerate(sizes):
        text = f"{number} {LINE * (size // len(LINE) + 1)}"
        (folder / f"{number:03}.txt").write_text(text[:size], encoding="utf-8", newline="")
    data = DataSettings(source=[str(folder)], tokenizer="byte", val_fraction=fraction)
    events: list[Event] = []
    tokens = prepare(data, emit=events.append, should_stop=lambda: False)
    return tokens, [event.message for event in events if isinstance(event, Notice)]


def ends(tokens: TokenFolder, split: str) -> int:
    return int(np.count_nonzero(getattr(tokens, split) == tokens.tokenizer.eot_id))


@pytest.mark.parametrize("count", [2, 3, 10, 45, 49, 50, 55, 300])
def test_every_document_ends_in_its_split_however_many_there_are(tmp_path: Path, count: int) -> None:
    tokens, _ = folder_of(tmp_path / "poems", [220] * count)
    for split in ("train", "val"):
        assert ends(tokens, split) == tokens.meta[split]["documents"] >= 1
    assert int(tokens.train[-1]) == int(tokens.val[-1]) == tokens.tokenizer.eot_id


@pytest.mark.parametrize("count", [45, 55])
def test_poems_are_held_out_whole(tmp_path: Path, count: int) -> None:
    """An end of eleven characters would be judged as if it were a poem."""
    tokens, _ = folder_of(tmp_path / "poems", [220] * count)
    assert tokens.meta["val"]["bytes"] % 220 == 0
    assert tokens.meta["ends_held_out"] == 0


SIZES = {
    "one": [5_000],
    "two": [90, 70],
    "a few books": [300_000, 200_000, 120_000],
    "one export among notes": [*[300] * 59, 456_000],
    "an export in the middle": [*[300] * 30, 456_000, *[300] * 30],
    "notes": [*range(200, 2_000, 20)],
    "halves": [100_000, 100_000, *[500] * 5],
    "many of one size": [700] * 500,
}


@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.1, 0.5, 0.8])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_share_is_one_of_bytes(tmp_path: Path, sizes: list[int], fraction: float) -> None:
    tokens, notices = folder_of(tmp_path / "texts", sizes, fraction)
    held_out = tokens.meta["val"]["bytes"]
    assert held_out + tokens.meta["train"]["bytes"] == sum(sizes)
    share = held_out / sum(sizes)
    assert abs(share - fraction) <= min(fraction, 1 - fraction) / 8 + 1 / sum(sizes)
    assert [text for text in notices if text.startswith(f"held out for validation: {share:.1%} of the text")]


def test_large_documents_each_give_their_end(tmp_path: Path) -> None:
    tokens, notices = folder_of(tmp_path / "books", [60_000, 80_000, 50_000])
    assert tokens.meta["ends_held_out"] == tokens.meta["val"]["documents"] == 3
    assert tokens.meta["val"]["bytes"] == 3_000 + 4_000 + 2_500
    assert notices == ["held out for validation: 5.0% of the text, 9.3 KiB: the ends of 3 documents"]


def chosen(names: list[str], size: int = 300) -> set[str]:
    sizes = DocumentSizes()
    for number, name in enumerate(names):
        sizes.add(number, name, size, size)
    return whole(sizes.hold_out(0.1), names)


def whole(held_out: HeldOut, names: list[str]) -> set[str]:
    return {name for number, name in enumerate(names) if held_out.border(number, name) == 0}


def test_a_document_keeps_its_split_when_others_are_added() -> None:
    names = [f"{number}.txt" for number in range(1_000)]
    before, after = chosen(names[:900]), chosen(names)
    assert (len(before), len(after)) == (90, 100)
    assert len(before & after) >= 80


def test_a_million_documents_are_chosen_from_in_bounded_memory() -> None:
    """Only the longest are kept one by one; a long one among them still gives its end."""
    sizes = DocumentSizes()
    names = [f"lines.jsonl:{number}" for number in range(100_000)]
    for number, name in enumerate(names):
        sizes.add(number, name, 100, 100)
    sizes.add(100_000, "book.txt", 5_000_000, 5_000_000)
    assert len(sizes._singles) <= 16_384
    held_out = sizes.hold_out(0.1)
    assert held_out.borders == {100_000: 4_500_000}
    assert len(whole(held_out, names)) == pytest.approx(10_000, rel=0.02)


def test_a_block_that_is_a_wish_is_as_long_as_the_shorter_split_allows(tmp_path: Path) -> None:
    tokens, _ = folder_of(tmp_path / "poems", [220] * 45)
    events: list[Event] = []
    assert fitting_block(tokens, 441, events.append) == 441
    assert events == []
    assert fitting_block(tokens, 512, events.append) == 432
    (notice,) = events
    assert isinstance(notice, Notice)
    assert "the validation split has 442 tokens; data.val_fraction or --val-data" in notice.message


def test_documents_of_a_block_are_held_out_as_one_by_one() -> None:
    """Also where their number is beyond what is kept of single ones."""
    file, numbers = "ta\udcffble.csv", range(7, 60_000, 3)
    hashes = name_hashes(file, numbers)
    assert hashes.tolist() == [name_hash(f"{file}:{number}") for number in numbers]
    sizes = [(number * number) % 997 for number in numbers]
    alone, together = DocumentSizes(), DocumentSizes()
    for number, size in zip(numbers, sizes, strict=True):
        alone.add(number, f"{file}:{number}", size, size)
    for begin in range(0, len(numbers), 777):
        some = slice(begin, begin + 777)
        together.add_block(numbers[some], hashes[some].tolist(), sizes[some], sizes[some])
    assert together.state() == alone.state()
