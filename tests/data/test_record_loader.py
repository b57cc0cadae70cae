"""Records: whole documents in windows, each once per epoch, and the mask of the loss."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpulm.data.loader import IGNORED, Loader, val_batches
from cpulm.data.marked_text import pack as pack_bits
from cpulm.data.packing import pack
from cpulm.data.record_loader import PackedRecords, RecordLoader

EOT = 99


def split(lengths: list[int], seed: int = 0) -> np.ndarray[Any, Any]:
    """Tokens of documents of these lengths, the end-of-text token included; each begins with its number."""
    generator = np.random.default_rng(seed)
    documents = [
        [*([100 + number, *generator.integers(0, EOT, max(0, length - 2))][: length - 1]), EOT]
        for number, length in enumerate(lengths)
    ]
    return np.concatenate(documents).astype(np.uint16)


def records_in(x: torch.Tensor, y: torch.Tensor) -> list[list[int]]:
    """The targets of each record, from the inputs' marks; the inputs are held against them."""
    found = []
    for inputs, targets in zip(x.tolist(), y.tolist(), strict=True):
        begins = [place for place, token in enumerate(inputs) if token == EOT]
        assert begins[0] == 0
        for begin, end in zip(begins, [*begins[1:], len(inputs)], strict=True):
            if targets[begin] != IGNORED:
                assert inputs[begin + 1 : end] == targets[begin : end - 1]
                found.append(targets[begin:end])
    return found


@given(st.lists(st.integers(1, 24), min_size=1, max_size=200), st.integers(24, 40))
def test_every_document_has_one_place_and_windows_are_never_too_full(lengths: list[int], block: int) -> None:
    places = pack(np.array(lengths), block)
    assert sorted(places.lengths) == sorted(lengths)
    full = [places.lengths[a:b].sum() for a, b in zip(places.begins[:-1], places.begins[1:], strict=True)]
    assert max(full) <= block
    assert sum(size <= block // 2 for size in full) <= 1  # two half-empty windows would have been one


def test_short_documents_leave_hardly_any_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 35, 5000)
    places = pack(lengths, 64)
    assert lengths.sum() / ((len(places.begins) - 1) * 64) > 0.97


def test_an_epoch_takes_every_record_once_in_an_order_of_its_own() -> None:
    tokens = split([2 + number % 13 for number in range(300)])
    records = PackedRecords(tokens, EOT, 16)
    loader = RecordLoader(records, batch_size=1, seed=5)
    epochs = [
        [record for row in range(records.windows) for record in records_in(*loader.batch(first + row))]
        for first in (0, records.windows)
    ]
    ends = (np.flatnonzero(tokens == EOT) + 1).tolist()
    wanted = sorted(tokens[a:b].tolist() for a, b in itertools.pairwise([0, *ends]))
    assert sorted(epochs[0]) == sorted(epochs[1]) == wanted
    assert epochs[0] != epochs[1]
    neighbours = [
        {tuple(sorted(r[0] for r in records_in(*loader.batch(n)))) for n in range(a, a + records.windows)}
        for a in (0, records.windows)
    ]
    assert neighbours[0] != neighbours[1]


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    records = PackedRecords(split([2 + number % 13 for number in range(300)]), EOT, 16)
    loader, other = RecordLoader(records, 7, seed=1), RecordLoader(records, 7, seed=2)
    far = loader.batch(1000)
    loader.batch(3)
    for one, again in zip(far, RecordLoader(records, 7, seed=1).batch(1000), strict=True):
        assert torch.equal(one, again)
    assert not torch.equal(far[0], other.batch(1000)[0])
    assert loader.batch(records.windows // 7)[0].shape == (7, 16)  # across the end of an epoch
    assert loader.epoch(records.windows) == pytest.approx(7)


def test_validation_sees_every_record_once_and_a_limit_spreads() -> None:
    tokens = split([2 + number % 9 for number in range(101)])
    records = PackedRecords(tokens, EOT, 20)
    batches = list(records.in_order(4))
    assert len(batches) == records.batch_count(4)
    found = [record for x, y in batches for record in records_in(x, y)]
    assert sorted(record[0] for record in found) == list(range(100, 201))
    assert sum(len(record) for record in found) == len(tokens)
    assert sum(int((y != IGNORED).sum()) for _, y in batches) == len(tokens)
    assert len(list(records.in_order(4, limit=2))) == 2


def test_of_a_long_document_only_the_beginning_is_used() -> None:
    tokens = split([5, 30, 4])
    records = PackedRecords(tokens, EOT, 16)
    assert (records.cut, records.cut_tokens) == (1, 14)
    found = [record for x, y in records.in_order(2) for record in records_in(x, y)]
    assert sorted(map(len, found)) == [4, 5, 16]


def test_masked_tokens_have_no_target_in_records_and_in_windows() -> None:
    tokens = split([7, 5, 9, 6])
    counts = np.random.default_rng(1).random(len(tokens)) < 0.5
    mask = np.frombuffer(pack_bits(counts), dtype=np.uint8)
    wanted = sorted(tokens[counts].tolist())
    (_, y), (_, whole) = (next(PackedRecords(tokens, EOT, 32, m).in_order(1)) for m in (mask, None))
    assert sorted(y[y != IGNORED].tolist()) == wanted
    assert ((y == whole) | (y == IGNORED)).all()
    y = next(val_batches(tokens, 26, 1, mask=mask))[1][0]
    assert y.tolist() == [
        token if one else IGNORED for token, one in zip(tokens[1:].tolist(), counts[1:], strict=True)
    ]
    loader = Loader(tokens, 8, 1, seed=0, mask=mask)
    start = int(loader.starts(0)[0])
    expected = np.where(counts, tokens.astype(int), IGNORED)[start + 1 : start + 9]
    assert loader.batch(0)[1][0].tolist() == expected.tolist()


@pytest.mark.parametrize("lengths", [[3], [1, 1, 1]])
def test_the_smallest_splits(lengths: list[int]) -> None:
    loader = RecordLoader(PackedRecords(split(lengths), EOT, 8), 2, seed=0)
    x, y = loader.batch(0)
    assert x.shape == y.shape == (2, 8)
