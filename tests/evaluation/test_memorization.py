"""Verbatim copies of the training tokens, against a brute-force search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpulm.data.tokenizer import Tokenizer, byte_tokenizer
from cpulm.errors import StoppedError
from cpulm.evaluation import memorization
from cpulm.evaluation.memorization import LENGTHS, Memorized, find_memorized

EOT = byte_tokenizer().eot_id


def find(texts: Sequence[Sequence[int]], train: Sequence[int]) -> Memorized:
    (found,) = find_memorized(
        [texts],
        np.array(train, dtype=np.uint16),
        byte_tokenizer(),
        emit=lambda _: None,
        should_stop=lambda: False,
    )
    return found


def stands_in(text: Sequence[int], train: Sequence[int]) -> bool:
    return any(list(train[k : k + len(text)]) == list(text) for k in range(len(train) - len(text) + 1))


def longest_common(texts: Sequence[Sequence[int]], train: Sequence[int]) -> int:
    best = 0
    for text in texts:
        for k in range(len(text)):
            while k + best < len(text) and stands_in(text[k : k + best + 1], train):
                best += 1
    return best


LETTERS = st.integers(97, 98)  # two letters, so that much is found


@given(
    st.lists(st.lists(LETTERS, max_size=40), max_size=3),
    st.lists(st.lists(LETTERS, max_size=50), max_size=4),
    st.sampled_from([1, 7, 64, 1 << 17]),
)
def test_shares_and_the_longest_passage_are_exact(
    texts: list[list[int]], documents: list[list[int]], chunk: int
) -> None:
    train = [token for document in documents for token in [*document, EOT]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorization, "_CHUNK_TOKENS", chunk)
        found = find(texts, train)
    for n in LENGTHS:
        grams = [text[k : k + n] for text in texts for k in range(len(text) - n + 1)]
        assert found.ngrams[n] == len(grams)
        assert found.found[n] == sum(stands_in(gram, train) for gram in grams)
    longest = longest_common(texts, train)
    if longest < LENGTHS[0]:
        assert found.longest is None
        return
    passage = found.longest
    assert passage is not None
    assert passage.tokens == longest
    said = texts[passage.sample][passage.start : passage.start + longest]
    assert documents[passage.document][passage.offset : passage.offset + longest] == said
    assert passage.text == bytes(said).decode()


def encoded(text: str) -> list[int]:
    return byte_tokenizer().encode(text)


def test_a_passage_is_shown_with_the_text_around_it_in_its_own_document() -> None:
    documents = ["something else", "the quick brown fox jumps over the lazy dog", "and so on"]
    train = [token for document in documents for token in [*encoded(document), EOT]]
    passage = find([encoded("no"), encoded("a brown fox jumps high")], train).longest
    assert passage is not None
    assert (passage.sample, passage.document, passage.offset) == (1, 1, 9)
    assert (passage.before, passage.text, passage.after) == (
        "the quick",
        " brown fox jumps ",
        "over the lazy dog",
    )


def test_a_hash_collision_is_not_a_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one word for all tokens, every window of the file has the hash of every n-gram."""
    monkeypatch.setattr(memorization, "_words", lambda size: np.ones(size, dtype=np.uint64))
    train = encoded("all the world is a stage")
    assert find([encoded("a player")], train).longest is None
    assert find([encoded("the worl")], train).found[8] == 1


def test_every_group_is_searched_separately() -> None:
    train = np.array(encoded("once upon a time there was"), dtype=np.uint16)
    groups = [[encoded("upon a time")], [encoded("in a galaxy far away")], []]
    some, none, empty = find_memorized(
        groups, train, byte_tokenizer(), emit=lambda _: None, should_stop=lambda: False
    )
    assert some.shares[8] == 1
    assert none.shares[8] == 0
    assert empty.shares == {}


def test_the_search_can_be_stopped() -> None:
    train = np.zeros(10, dtype=np.uint16)
    with pytest.raises(StoppedError):
        find_memorized(
            [[[1] * 9]],
            train,
            Tokenizer(byte_tokenizer().inner),
            emit=lambda _: None,
            should_stop=lambda: True,
        )
