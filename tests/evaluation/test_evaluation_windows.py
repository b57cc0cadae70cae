"""Every token of a text is scored once, with the promised context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpulm.evaluation.text_windows import Protocol, Window, batches, windows

END = 9


def chunks_of(ids: Sequence[int], cuts: Sequence[int]) -> Iterator[npt.NDArray[np.uint16]]:
    yield from np.split(np.array(ids, dtype=np.uint16), sorted(cut % (len(ids) + 1) for cut in cuts))


TEXTS = st.lists(st.integers(0, END), max_size=60)
CUTS = st.lists(st.integers(0, 1000), max_size=4)
STRIDES = st.integers(2, 8).flatmap(lambda block: st.tuples(st.just(block), st.integers(1, block)))


@given(TEXTS, CUTS, STRIDES)
def test_one_stream_is_scored_once_with_its_context(
    ids: list[int], cuts: list[int], shape: tuple[int, int]
) -> None:
    block, stride = shape
    document = np.cumsum([0, *(token == END for token in ids)])[:-1].tolist()
    scored = 0
    for window in windows(chunks_of(ids, cuts), END, Protocol(block, stride)):
        begin = window.place - window.first  # targets are scored from the second token of the stream on
        assert window.tokens.tolist() == ids[begin : begin + len(window.tokens)]
        assert len(window.tokens) <= block + 1
        assert window.place == scored
        count = len(window.tokens) - 1 - window.first
        assert window.documents.tolist() == document[scored + 1 : scored + 1 + count]
        # The first one scored has the least context: its input and those before it in the window.
        assert window.first + 1 >= min(window.place + 1, block - stride + 1)
        scored += count
    assert scored == max(0, len(ids) - 1)


@given(TEXTS, CUTS, STRIDES)
def test_documents_apart_are_each_what_they_are_alone(
    ids: list[int], cuts: list[int], shape: tuple[int, int]
) -> None:
    protocol = Protocol(*shape, apart=True, first_token=END)
    documents = [part.tolist() for part in np.split(ids, np.flatnonzero(np.array(ids) == END) + 1)]
    alone = [
        (window.tokens.tolist(), window.first, [number] * len(window.documents))
        for number, part in enumerate(documents)
        if part
        for window in windows([np.array([END, *part])], -1, Protocol(*shape))
    ]
    found = windows(chunks_of(ids, cuts), END, protocol)
    assert [(w.tokens.tolist(), w.first, w.documents.tolist()) for w in found] == alone


def test_without_a_first_token_a_document_of_one_token_has_its_end_to_guess_alone() -> None:
    found = list(windows([np.array([3, END, END, 4])], END, Protocol(4, 4, apart=True)))
    assert [window.tokens.tolist() for window in found] == [[3, END]]


@pytest.mark.parametrize("tokens_per_batch", [1, 7, 64])
def test_batches_hold_every_scored_target_with_its_place(tokens_per_batch: int) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, END + 1, 500)
    protocol = Protocol(8, 3, apart=True, first_token=END)
    cut: list[Window] = list(windows([ids], END, protocol))
    expected = {
        window.place + k: (window.tokens[window.first + 1 + k], document)
        for window in cut
        for k, document in enumerate(window.documents)
    }
    found: dict[int, tuple[int, int]] = {}
    for batch in batches(cut, tokens_per_batch):
        scored = batch.targets != -100
        # Rows are as long as the longest, and what is before a scored target is its context.
        assert batch.inputs.shape == batch.targets.shape
        targets = batch.targets[scored].tolist()
        found.update(zip(batch.places, zip(targets, batch.documents, strict=True), strict=True))
    assert found == expected
