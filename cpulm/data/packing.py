"""Packs whole documents into windows: best fit, the longest first, on the histogram of their lengths.

Documents of one length are interchangeable, so which lengths share a window is decided once, and an epoch
only puts other documents of the same lengths into the windows. The work depends on the window's length,
not on the number of documents
(Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination", https://arxiv.org/abs/2107.02027).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cpulm.data.marked_text import unpack
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import SettingsError
from cpulm.settings import Settings

Ints = npt.NDArray[np.int64]


class Windows(NamedTuple):
    """Windows and the places for documents in them.

    Attributes:
        begins: [windows + 1], where the places of each window begin in ``lengths``.
        lengths: [documents], the length of the document that goes into each place.
    """

    begins: Ints
    lengths: Ints


def documents_in(tokens: npt.NDArray[Any], eot_id: int) -> tuple[Ints, Ints]:
    """Where each document of a split begins, and its length with the end-of-text token."""
    ends = np.flatnonzero(np.asarray(tokens) == eot_id) + 1
    if not len(ends) or ends[-1] < len(tokens):
        ends = np.append(ends, len(tokens))
    begins = np.concatenate([[0], ends[:-1]])
    return begins, ends - begins


def tokens_per_epoch(settings: Settings, tokens: TokenFolder) -> int:
    """Tokens that an epoch computes: those of the training split, or of all windows of its records."""
    block = settings.model.block_size
    if not settings.train.records:
        return len(tokens.train)
    _, lengths = documents_in(tokens.train, tokens.tokenizer.eot_id)
    return (len(pack(np.minimum(lengths, block), block).begins) - 1) * block


def require_loss(settings: Settings, tokens: TokenFolder) -> None:
    """Refuse a block size that cuts off all that counts in the loss of the records of a split.

    Raises:
        SettingsError: naming the split and the block size.
    """
    block = settings.model.block_size
    splits = {"training": (tokens.train, tokens.train_mask), "validation": (tokens.val, tokens.val_mask)}
    for name, (split, mask) in splits.items():
        if not settings.train.records or mask is None:
            continue
        bits = np.asarray(mask)
        begins, lengths = documents_in(split, tokens.tokenizer.eot_id)
        ends = begins + np.minimum(lengths, block)
        spans = zip(begins.tolist(), ends.tolist(), strict=True)
        if not any(unpack(bits, np.arange(begin, end)).any() for begin, end in spans):
            raise SettingsError(
                f"model.block_size = {block} cuts off all that counts in the loss of the {name} split",
                f"the longest record needs --block-size {int(lengths.max())}",
            )


def pack(lengths: Ints, block_size: int) -> Windows:
    """Choose windows of ``block_size`` tokens for documents of these lengths, 1 to ``block_size`` each."""
    histogram = np.bincount(lengths, minlength=block_size + 1)
    # By the space that is left: groups of equal windows, each as the lengths in one of them and how many.
    groups: list[dict[tuple[int, ...], int]] = [{} for _ in range(block_size + 1)]

    def put(window: tuple[int, ...], count: int) -> None:
        group = groups[block_size - sum(window)]
        group[window] = group.get(window, 0) + count

    for length in range(block_size, 0, -1):
        left = int(histogram[length])
        for space in range(length, block_size):
            while left and groups[space]:
                window, count = groups[space].popitem()
                taken, each = _fitting(left, count, space // length)
                put((*window, *[length] * each), taken)
                if count > taken:
                    put(window, count - taken)
                left -= taken * each
        whole, rest = divmod(left, block_size // length)
        for each, count in ((block_size // length, whole), (rest, 1)):
            if each and count:
                put((length,) * each, count)
    found = [(window, count) for group in groups for window, count in group.items()]
    sizes = np.concatenate([np.full(count, len(window)) for window, count in found])
    return Windows(
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate([np.tile(np.array(window, dtype=np.int64), count) for window, count in found]),
    )


def _fitting(documents: int, windows: int, fit: int) -> tuple[int, int]:
    """How many of some equal windows are filled, and with how many documents each."""
    return (windows, fit) if documents >= windows * fit else (max(1, documents // fit), min(documents, fit))
