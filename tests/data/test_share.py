"""A share of a text, and texts with weights: which parts are used, and how often."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpulm.data import text_decoding
from cpulm.data.prepare import prepare
from cpulm.data.records import rows
from cpulm.data.text_size import text_size
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import DataError, SettingsError
from cpulm.events import Progress
from cpulm.settings import DataSettings


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))


def made(text: Path, share: float, **settings: Any) -> TokenFolder:
    data = DataSettings(source=[str(text)], tokenizer="byte", share=share, **settings)
    return prepare(data, emit=lambda _: None, should_stop=lambda: False)


def pieces_of(folder: TokenFolder) -> list[str]:
    """The documents of the training split."""
    ends = np.flatnonzero(folder.train == folder.tokenizer.eot_id)
    return [folder.tokenizer.decode(ids.tolist()) for ids in np.split(folder.train, ends + 1)]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {number} of many short ones\n" for number in range(3000)))
    return path


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.txt"
    path.write_text("".join(f"{number} " for number in range(700_000)))
    return path


@pytest.mark.parametrize(("name", "unit"), [("lines", "line"), ("numbers", "file")])
def test_documents_and_pieces_of_long_ones_are_chosen(
    request: pytest.FixtureRequest, name: str, unit: str
) -> None:
    path: Path = request.getfixturevalue(name)
    whole, share, again = (made(path, part, document=unit) for part in (1.0, 0.4, 0.400001))
    size = len(share.train) + len(share.val)
    assert 0.3 < size / (len(whole.train) + len(whole.val)) < 0.5
    assert 0.02 < len(share.val) / size < 0.1
    assert np.array_equal(share.train, again.train)
    text = path.read_text()
    assert len(pieces_of(share)) > 2
    assert all(piece in text for piece in pieces_of(share))


def test_an_epoch_has_a_text_as_often_as_its_weight_says(lines: Path, numbers: Path) -> None:
    once = made(lines, 1.0, document="line")
    data = DataSettings(
        source=[str(lines), str(numbers)], tokenizer="byte", document="line", weights=[2.5, 1e-9]
    )
    folder = prepare(data, emit=lambda _: None, should_stop=lambda: False)
    assert np.array_equal(folder.val, once.val)
    assert len(folder.train) / len(once.train) == pytest.approx(2.5, abs=0.05)
    assert folder.meta["train"]["documents"] / once.meta["train"]["documents"] == pytest.approx(2.5, abs=0.05)
    counts = Counter(pieces_of(folder))
    assert set(counts.values()) <= {2, 3, 1}
    assert set(counts) == set(pieces_of(once))


def test_copies_are_not_validation_text_and_documents_stay_whole(numbers: Path) -> None:
    once, twice = made(numbers, 1.0), made(numbers, 1.0, weights=[2.0])
    assert np.array_equal(twice.val, once.val)
    assert np.array_equal(twice.train, np.concatenate([once.train, once.train]))


def test_weights_need_as_many_numbers_as_sources(lines: Path) -> None:
    with pytest.raises(ValueError, match="2 weights, but 1 in source"):
        made(lines, 1.0, weights=[1.0, 2.0])
    folder = made(lines, 1.0)
    with pytest.raises(SettingsError, match="no effect on a prepared token folder"):
        made(folder.path, 1.0, weights=[2.0])


def test_a_validation_text_is_used_whole(lines: Path, numbers: Path) -> None:
    folder = made(lines, 0.4, document="line", val_source=[str(numbers)])
    assert folder.meta["val"]["bytes"] == numbers.stat().st_size


def test_what_a_share_leaves_out_counts_as_read(lines: Path) -> None:
    data = DataSettings(source=[str(lines)], tokenizer="byte", share=0.2, document="line")
    seen: list[Progress] = []
    prepare(
        data, emit=lambda e: seen.append(e) if isinstance(e, Progress) else None, should_stop=lambda: False
    )
    last = [one for one in seen if one.finished]
    assert len(last) > 1
    assert all(one.done == one.total for one in last if one.total is not None)


@pytest.mark.parametrize("source", ["source", "val_source"])
@pytest.mark.parametrize("content", ["", "cat\n"])
def test_too_little_text_is_found_by_its_size_alone(
    lines: Path, tmp_path: Path, source: str, content: str
) -> None:
    little = tmp_path / "little.txt"
    little.write_text(content)
    data = DataSettings(**{"source": [str(lines)], source: [str(little)]})
    characters = len(content)
    with pytest.raises(DataError, match=rf"little\.txt has {characters} characters of text: too little to"):
        text_size(data, lambda _: None, lambda: False)


def test_a_share_without_text_is_an_error_that_names_it(lines: Path) -> None:
    with pytest.raises(DataError, match=r"has 0 characters of text where data\.share is 1e-09"):
        made(lines, 1e-9)


def test_a_row_is_used_as_often_as_its_column_says(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    weights = [0, 2, 0.25, 1.5] * 500
    path.write_text("text,stars\n" + "".join(f"row {n} of many,{w}\n" for n, w in enumerate(weights)))
    folder = made(path, 1.0, row_weight="stars", val_fraction=0.1)
    counts = Counter(pieces_of(folder))
    times: dict[float, Counter[int]] = {weight: Counter() for weight in weights}
    for number, weight in enumerate(weights):
        times[weight][counts[f"row {number} of many"]] += 1
    assert set(times[0]) == {0}
    assert set(times[2]) == {0, 2}  # 0: held out
    assert set(times[0.25]) == {0, 1}
    assert set(times[1.5]) == {0, 1, 2}
    assert times[0.25][1] == pytest.approx(112, abs=40)
    assert times[1.5][2] == pytest.approx(times[1.5][1], rel=0.4)
    ends = np.flatnonzero(folder.val == folder.tokenizer.eot_id)
    *held_out, _ = [folder.tokenizer.decode(ids.tolist()) for ids in np.split(folder.val, ends + 1)]
    assert set(Counter(held_out).values()) == {1}
    assert not set(held_out) & set(counts)


@pytest.mark.parametrize("weight", ["-1", "much", "", "nan", "1e9"])
def test_a_weight_that_is_none_is_an_error_with_its_row(tmp_path: Path, weight: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"text,stars\n{'a row of text that is long enough. ' * 3},1\nanother,{weight}\n")
    with pytest.raises(DataError, match=rf"rows\.csv, line 3: the column 'stars' is '{weight}'"):
        made(path, 1.0, row_weight="stars")
    with pytest.raises(DataError, match="has no column 'starz'"):
        made(path, 1.0, row_weight="starz")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"val_fraction": 0.4},
        {"weights": [2.5]},
        {"dedup": True, "weights": [2]},
        {"share": 0.5},
        {"val": True},
    ],
)
def test_rows_that_are_handed_on_together_give_the_tokens_of_single_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Also a row that is so long that its end is held out, and rows that were there before."""
    texts = [f"row {n % 150} é" * (1 + n % 3) for n in range(200)]
    (path := tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with path.open("a") as file:
        file.write(json.dumps({"text": "a long row " * 1000}) + "\n")
    settings = {"share": 1.0, **settings}
    if settings.pop("val", False):
        settings["val_source"] = [str(tmp_path / "val.jsonl")]
        (tmp_path / "val.jsonl").write_text(
            '{"text": "row 3 \u00e9"}\n' + json.dumps({"text": "its own " * 9})
        )
    monkeypatch.setattr(text_decoding, "_CHUNK_BYTES", 1000)
    metas = []
    for largest in (1 << 20, 0):
        monkeypatch.setattr(rows, "_LARGEST_BLOCK", largest)
        monkeypatch.setenv("CPULM_CACHE", str(tmp_path / f"cache-{largest}"))
        metas.append(made(path, **settings).meta)
    assert metas[0] == metas[1]
