"""Tokens are split at random: the text stays the same, and so does the choice for a row."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cpulm.data.loader import IGNORED, Loader
from cpulm.data.marked_text import pack
from cpulm.data.split_tokens import TokenSplitter, merged_parts
from cpulm.data.tokenizer import Tokenizer, byte_tokenizer, train_bpe

TEXT = "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox does not. " * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT], 320)


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer) -> np.ndarray:
    ids = np.array(tokenizer.encode(TEXT), dtype=np.int64)
    return ids[: len(ids) // 20 * 20].reshape(-1, 20)


def splitter(tokenizer: Tokenizer, probability: float, seed: int = 1) -> TokenSplitter:
    return TokenSplitter(merged_parts(tokenizer), probability, seed)


def decoded(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    text: str = tokenizer.inner.decode(ids.tolist())
    return text


def test_the_parts_of_a_token_are_its_text(tokenizer: Tokenizer) -> None:
    parts = merged_parts(tokenizer)
    merged = np.flatnonzero(parts[:, 0] >= 0)
    assert len(merged) == tokenizer.vocab_size - 257
    for token in merged.tolist():
        assert decoded(tokenizer, parts[token]) == decoded(tokenizer, np.array([token]))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9999])
def test_the_text_of_a_row_stays_and_is_cut_at_its_end(
    tokenizer: Tokenizer, rows: np.ndarray, probability: float
) -> None:
    ids, origins = splitter(tokenizer, probability).split(rows, 0)
    assert ids.shape == origins.shape == rows.shape
    for row, taken, places in zip(rows, ids, origins, strict=True):
        assert decoded(tokenizer, row).startswith(decoded(tokenizer, taken))
        assert (np.diff(places) >= 0).all()
        assert (np.diff(places) <= 1).all()
        assert places[0] == 0


def test_half_of_the_rows_stay_and_the_probability_holds_in_the_others(
    tokenizer: Tokenizer, rows: np.ndarray
) -> None:
    token = int(np.flatnonzero(merged_parts(tokenizer)[:, 0] >= 0)[0])  # of two bytes: split once at most
    same = np.full((2000, 50), token)
    ids, origins = splitter(tokenizer, 0.2).split(same, 0)
    changed = (ids != same).any(axis=1)
    assert 900 < changed.sum() < 1100
    first = ids[changed][:, 0] != token  # of the first token of each row, which is never pushed out
    assert 0.15 < first.mean() < 0.25
    assert (origins[~changed] == np.arange(50)).all()


def test_a_row_is_split_by_its_number_and_the_seed_alone(tokenizer: Tokenizer, rows: np.ndarray) -> None:
    several = splitter(tokenizer, 0.3).split(rows, 100)
    for number, row in enumerate(rows):
        alone = splitter(tokenizer, 0.3).split(row[None], 100 + number)
        assert (alone.ids[0] == several.ids[number]).all()
    assert (splitter(tokenizer, 0.3).split(rows, 101).ids != several.ids).any()
    assert (splitter(tokenizer, 0.3, seed=2).split(rows, 100).ids != several.ids).any()


def test_the_loader_splits_each_pass_anew_and_a_part_counts_as_its_token(
    tokenizer: Tokenizer, rows: np.ndarray
) -> None:
    tokens = rows.reshape(-1).astype(np.uint16)
    counts = np.arange(len(tokens)) % 3 == 0
    whole, masked = (
        Loader(tokens, 20, 4, seed=3, mask=mask, splitter=splitter(tokenizer, 0.5))
        for mask in (None, np.frombuffer(pack(counts), dtype=np.uint8))
    )
    batches = [whole.batch(i)[0] for i in range(12)]
    assert len({batch.numpy().tobytes() for batch in batches}) == 12
    for number in range(12):
        inputs, targets = whole.batch(number)
        assert (inputs[:, 1:] == targets[:, :-1]).all()
        begins = whole.starts(number)
        _, origins = splitter(tokenizer, 0.5).split(
            tokens[begins[:, None] + np.arange(21)].astype(np.int64), number * 4
        )
        counted = counts[begins[:, None] + origins[:, 1:]]
        assert (masked.batch(number)[1].numpy() == np.where(counted, targets.numpy(), IGNORED)).all()


def test_tokens_of_a_vocabulary_without_merges_stay(rows: np.ndarray) -> None:
    tokenizer = byte_tokenizer()
    assert (merged_parts(tokenizer) == -1).all()
    bytes_ = rows % 256
    assert (splitter(tokenizer, 0.9).split(bytes_, 0).ids == bytes_).all()


def test_merges_of_another_kind_are_left_alone() -> None:
    """Of an empty token, which would be split without end, and with a prefix of the second part."""
    vocab = {"": 0, "a": 1, "b": 2, "##b": 3, "ab": 4, "<|endoftext|>": 5}
    model = {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]}
    tokenizer = Tokenizer.from_json(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    tokenizer.parts["model"]["merges"] = [["", "ab"], ["a", "##b"]]
    assert (merged_parts(tokenizer) == -1).all()
