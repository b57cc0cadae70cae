"""A token folder is opened if it is complete; otherwise the error names the problem."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpulm.data.bpe_encoder import Ids
from cpulm.data.tokenfile import TokenFolder, digest_of, dtype_for, is_token_folder, require_block
from cpulm.data.tokenizer import byte_tokenizer, char_tokenizer
from cpulm.data.unfinished import Unfinished
from cpulm.data.write import writing_folder
from cpulm.errors import DataError, ResourceError, SettingsError


def written(target: Path, train: str = "training text", val: str = "other") -> Path:
    tokenizer = byte_tokenizer()
    with writing_folder(Unfinished(target), tokenizer, keep_existing=False) as folder:
        for split, text in (("train", train), ("val", val)):
            folder.splits[split].note(0, text)
            folder.splits[split].write(np.array(tokenizer.encode(text), dtype=np.uint32))
        folder.finish({"source": ["here"]})
    return target


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = TokenFolder.open(written(tmp_path / "a" / "b"))
    assert folder.tokenizer.decode(folder.train.tolist()) == "training text"
    assert (folder.train.dtype, len(folder.train), len(folder.val)) == (np.uint16, 13, 5)
    assert (folder.vocab_size, folder.train_documents, folder.bytes_per_token) == (257, 1, 1.0)
    folder.verify()
    assert sorted(file.name for file in folder.path.iterdir()) == [
        "meta.json",
        "tokenizer.json",
        "train.bin",
        "val.bin",
    ]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_the_digest_names_the_content(tmp_path: Path) -> None:
    digests = [
        TokenFolder.open(written(tmp_path / name, text)).digest
        for name, text in (("a", "some text"), ("b", "some text"), ("c", "SOME text"))
    ]
    assert digests[0] == digests[1] != digests[2]


def damage(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = change((folder / name).read_bytes())
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return apply


def meta_with(**values: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), **values}).encode()


OTHER_TOKENIZER = char_tokenizer("abc").to_json().encode()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage("train.bin", lambda content: content[:-1]), "train.bin is cut short: it has 25 bytes"),
        (damage("val.bin", lambda content: content + b"xx"), "val.bin is not the file that was written"),
        (damage("val.bin", lambda _: None), "val.bin is missing"),
        (damage("meta.json", lambda _: None), "it has no meta.json"),
        (damage("meta.json", lambda content: content[:50]), "cannot read"),
        (damage("meta.json", lambda _: b"[]"), "format version None"),
        (damage("meta.json", meta_with(format_version=99)), "format version 99, this cpulm reads 1"),
        (damage("meta.json", meta_with(train={"tokens": 3})), "train cannot be {'tokens': 3}"),
        (damage("meta.json", meta_with(dtype="uint32")), "dtype do not fit each other"),
        (damage("meta.json", meta_with(eot_id=0)), "meta.json is damaged"),
        (damage("tokenizer.json", lambda _: None), "cannot read the tokenizer"),
        (damage("tokenizer.json", lambda content: content[:99]), "is not a tokenizer.json"),
        (damage("tokenizer.json", lambda _: OTHER_TOKENIZER), "has 4 tokens, meta.json says 257"),
    ],
)
def test_damage_is_refused_and_named(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    folder = written(tmp_path / "tokens")
    spoil(folder)
    with pytest.raises(DataError, match=message) as caught:
        TokenFolder.open(folder)
    assert str(folder) in caught.value.message
    assert caught.value.hint
    assert is_token_folder(folder)


def crafted(folder: Path, split: str = "", **values: object) -> Path:
    """A folder whose ``meta.json`` has other values, of ``split`` if one is named, and a digest that fits."""
    meta = json.loads((folder / "meta.json").read_text())
    (meta[split] if split else meta).update(values)
    meta["blake2b"] = digest_of(meta)
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.mark.parametrize(
    ("split", "values"),
    [
        ("val", {"bytes_per_token": 0.0}),
        ("val", {"bytes_per_token": -1.0}),
        ("val", {"bytes_per_token": float("nan")}),
        ("val", {"bytes_per_token": float("inf")}),
        ("val", {"bytes_per_token": "1"}),
        ("val", {"bytes": -5}),
        ("val", {"lost_bytes": 10**9}),
        ("train", {"documents": -1}),
        ("train", {"tokens": True}),
        ("train", {"tokens": 10**30}),
        ("", {"eot_id": 257}),
        ("", {"eot_id": -1}),
        ("", {"vocab_size": 10**18}),
        ("", {"source": 3}),
        ("", {"lost_in_reading": {"replaced": "many"}}),
        ("", {"lost_in_reading": 3}),
    ],
)
def test_crafted_values_that_cannot_be_are_refused(
    tmp_path: Path, split: str, values: dict[str, Any]
) -> None:
    folder = crafted(written(tmp_path / "tokens"), split, **values)
    with pytest.raises(DataError, match=r"meta\.json"):
        TokenFolder.open(folder)


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "tokens")
    tokens = np.fromfile(folder / "train.bin", dtype="<u2")
    tokens[3] = 257
    tokens.tofile(folder / "train.bin")
    digest = hashlib.blake2b((folder / "train.bin").read_bytes(), digest_size=16).hexdigest()
    crafted(folder, "train", blake2b=digest)
    with pytest.raises(DataError, match=r"train\.bin has tokens beyond its vocabulary of 257"):
        TokenFolder.open(folder).verify()


def test_changed_bytes_are_found_by_the_digest(tmp_path: Path) -> None:
    folder = written(tmp_path / "tokens")
    content = (folder / "val.bin").read_bytes()
    (folder / "val.bin").write_bytes(content[:-2] + b"\x01\x00")
    opened = TokenFolder.open(folder)
    with pytest.raises(DataError, match=r"val\.bin is damaged"):
        opened.verify()


@pytest.mark.parametrize("names", [["caf\udce9.txt"], ["caf\udcc3\udca9.txt"], ["\ud800.txt", "\U0001f600"]])
def test_a_source_name_that_is_not_utf_8_is_kept(tmp_path: Path, names: list[str]) -> None:
    """Bytes that UTF-8 would read as characters stay bytes: a locale of ASCII names files that way."""
    with writing_folder(Unfinished(tmp_path / "tokens"), byte_tokenizer(), keep_existing=False) as folder:
        for split in ("train", "val"):
            folder.splits[split].note(0, "ab")
            folder.splits[split].write(np.array([1, 2], dtype=np.uint32))
        folder.finish({"source": names})
    assert TokenFolder.open(tmp_path / "tokens").meta["source"] == names


def test_a_split_of_empty_documents_is_too_little_text(tmp_path: Path) -> None:
    with writing_folder(Unfinished(tmp_path / "tokens"), byte_tokenizer(), keep_existing=False) as folder:
        for split, text in (("train", "ab"), ("val", "")):
            folder.splits[split].note(0, text)
            folder.splits[split].write(np.array([256, 256], dtype=np.uint32))
        with pytest.raises(DataError, match="validation split has 2 tokens for 0 bytes of text"):
            folder.finish({})


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="validation split has 1 tokens"):
        written(tmp_path / "tokens", val="x")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "tokens"
    with (
        pytest.raises(ResourceError, match="no space left to write tokens") as caught,
        writing_folder(Unfinished(target), byte_tokenizer(), keep_existing=False),
    ):
        raise OSError(errno.ENOSPC, "as a full disk reports it")
    assert str(target) in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_file_written_meanwhile_by_another_process_is_kept(tmp_path: Path) -> None:
    target, ids = tmp_path / "tokens", np.arange(5, dtype=np.uint32)

    def write_late(*, keep_existing: bool) -> Ids:
        with writing_folder(Unfinished(target), byte_tokenizer(), keep_existing=keep_existing) as folder:
            if not target.exists():
                written(target)
            for split in folder.splits.values():
                split.note(0, "abcde")
                split.write(ids)
            folder.finish({})
        return TokenFolder.open(target).train[:]

    assert len(write_late(keep_existing=True)) == 13
    with pytest.raises(DataError, match="no longer empty"):
        write_late(keep_existing=False)
    assert len(TokenFolder.open(target).train) == 13
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_of_text_is_not_a_token_folder(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"x")
    assert not is_token_folder(tmp_path)
    assert not is_token_folder(tmp_path / "missing")


@pytest.mark.parametrize(("vocab_size", "name"), [(257, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_the_width_follows_the_vocabulary(vocab_size: int, name: str) -> None:
    assert dtype_for(vocab_size).name == name


def test_a_block_needs_one_token_more() -> None:
    require_block("train", 9, 8)
    with pytest.raises(
        SettingsError, match="the training split has 8 tokens: the largest block_size that fits is 7"
    ):
        require_block("train", 8, 8)
