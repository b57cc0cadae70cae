"""Batches depend only on seed and index; an epoch has every window and every target once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpulm.data.loader import IGNORED, Loader, permuted, val_batches
from cpulm.errors import SettingsError


def counting(n: int) -> npt.NDArray[np.uint16]:
    """Tokens that say where they stand."""
    return np.arange(n, dtype=np.uint16)


@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permuted_is_a_permutation(n: int, key: int) -> None:
    assert sorted(permuted(np.arange(n), n, key).tolist()) == list(range(n))


def test_permutations_differ_by_key_and_look_random() -> None:
    n = 4000
    orders = [permuted(np.arange(n), n, key) for key in range(30)]
    assert len({order.tobytes() for order in orders}) == 30
    for order in orders:
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.08
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.08


def test_targets_are_the_inputs_shifted_by_one() -> None:
    loader = Loader(counting(1000), block_size=16, batch_size=5, seed=3)
    x, y = loader.batch(7)
    assert x.shape == y.shape == (5, 16)
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous()
    assert y.is_contiguous()
    assert torch.equal(y, x + 1)


@given(
    n=st.integers(9, 400), block=st.integers(2, 8), batch=st.integers(1, 9), seed=st.integers(0, 2**31 - 1)
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_takes_every_window_once(n: int, block: int, batch: int, seed: int) -> None:
    """Windows lie side by side from one offset; rows go on into the next epoch, every batch full."""
    loader = Loader(counting(n), block, batch, seed)
    batches = -(-3 * loader.windows // batch)
    starts = np.concatenate([loader.starts(i) for i in range(batches)])[: 3 * loader.windows]
    for epoch in starts.reshape(3, loader.windows):
        ordered = sorted(epoch.tolist())
        assert 0 <= ordered[0] < block
        assert ordered[-1] + block < n
        assert ordered == list(range(ordered[0], ordered[0] + block * loader.windows, block))
    # All but less than two blocks of the split is taken in every epoch.
    assert n - loader.windows * block <= 2 * block


def test_epochs_differ_in_offset_and_order() -> None:
    loader = Loader(counting(5000), block_size=50, batch_size=1, seed=0)
    first = [int(loader.starts(i)[0]) for i in range(loader.windows)]
    second = [int(loader.starts(i + loader.windows)[0]) for i in range(loader.windows)]
    assert first != second
    assert len({int(loader.starts(e * loader.windows)[0]) % 50 for e in range(40)}) > 15


def test_a_batch_depends_on_seed_and_index_alone() -> None:
    first = Loader(counting(3000), 16, 4, seed=1)
    wanted = [first.batch(i)[0] for i in range(300)]
    again = Loader(counting(3000), 16, 4, seed=1)
    for i in (299, 0, 41, 298):
        assert torch.equal(again.batch(i)[0], wanted[i])
    assert not torch.equal(Loader(counting(3000), 16, 4, seed=2).batch(0)[0], wanted[0])


def test_far_batches_need_no_walk_and_no_table() -> None:
    tokens = np.zeros(1, dtype=np.uint16)
    huge = np.lib.stride_tricks.as_strided(tokens, (10**12,), (0,))
    loader = Loader(huge, 1024, 8, seed=5)
    starts = loader.starts(10**11)
    assert len(set(starts.tolist())) == 8
    assert int(starts.min()) >= 0
    assert int(starts.max()) < 10**12


def test_epochs_are_counted_in_batches() -> None:
    loader = Loader(counting(1001), block_size=10, batch_size=8, seed=0)
    assert loader.windows == 99
    assert loader.batches_per_epoch == pytest.approx(99 / 8)
    assert loader.epoch(25) == pytest.approx(200 / 99)


def test_wide_tokens_are_read_as_they_are() -> None:
    tokens = np.full(40, 100_000, dtype=np.uint32)
    x, _ = Loader(tokens, 8, 2, seed=0).batch(0)
    assert int(x.max()) == int(x.min()) == 100_000


@pytest.mark.parametrize("n_tokens", [0, 1, 8])
def test_a_split_smaller_than_a_block_is_refused(n_tokens: int) -> None:
    with pytest.raises(SettingsError, match=f"block_size is 8, but the training split has {n_tokens} tokens"):
        Loader(counting(n_tokens), 8, 1, seed=0)
    with pytest.raises(SettingsError, match=rf"validation split.*fits is {max(0, n_tokens - 1)}"):
        val_batches(counting(n_tokens), 8, 1)
    if n_tokens == 8:
        Loader(counting(8), 7, 1, seed=0).batch(0)
        next(val_batches(counting(8), 7, 1))


@given(n=st.integers(6, 300), block=st.integers(2, 5), batch=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_every_target_is_predicted_exactly_once(n: int, block: int, batch: int) -> None:
    tokens = counting(n)
    seen: Counter[int] = Counter()
    for x, y in val_batches(tokens, block, batch):
        assert x.shape == y.shape == (batch, block)
        assert x.dtype == y.dtype == torch.int64
        there = y != IGNORED
        assert torch.equal(y[there], x[there] + 1)
        assert bool((x[~there] == 0).all())
        seen.update(y[there].tolist())
    assert seen == Counter(range(1, n))


def test_a_limit_selects_windows_evenly_from_the_split_and_each_batch_is_spread_over_it() -> None:
    firsts = [x[:, 0].tolist() for x, _ in val_batches(counting(1001), 10, 5, limit=4)]
    assert firsts == [
        [0, 200, 400, 600, 800],
        [50, 250, 450, 650, 850],
        [100, 300, 500, 700, 900],
        [150, 350, 550, 750, 950],
    ]
    assert len(list(val_batches(counting(1001), 10, 5, limit=99))) == 20
