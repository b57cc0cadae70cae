"""Encodes long text by byte-level BPE in windows, with the ids of the whole.

The library merges a pretoken as one piece, and one of a megabyte (DNA, digits, Chinese text) leaves
the processor's caches at every merge. A sequence of tokens is the BPE encoding of its text exactly if each
two neighbours are the encoding of theirs. So two overlapping windows are joined behind a token that both have
at the same place: all neighbours on either side of it come from a correct encoding.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, pre_tokenizers
from tokenizers import Tokenizer as JsonTokenizer

LONG_BYTES = 1 << 13
"""Text of more bytes is worth looking for a long pretoken."""

_LETTER_OR_BLANK = re.compile(r"[^\W_]|\s")

_Ids = npt.NDArray[np.uint32]
_Ints = npt.NDArray[np.int64]


class LongTextEncoder:
    """Encodes text of any length by a byte-level BPE tokenizer.

    Args:
        inner: the tokenizer.
        window: characters that are encoded at a time; pretokens of up to twice as many are left whole.
        overlap: characters that two windows share: in so many they agree on some token, unless the text
            repeats one pattern.
    """

    def __init__(self, inner: JsonTokenizer, window: int = 2048, overlap: int = 256) -> None:
        self._inner = inner
        # Pretokens and windows of one are pieces: a window of white space would be split once more.
        self._merger = JsonTokenizer.from_str(inner.to_str())
        self._merger.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._merger.encode_special_tokens = True
        self._window = window
        self._overlap = overlap
        vocab = inner.get_vocab()
        # In a byte-level vocabulary each byte is one character.
        self._token_bytes = np.zeros(max(vocab.values()) + 1, dtype=np.int64)
        for token, number in vocab.items():
            self._token_bytes[number] = len(token)

    def encode(self, text: str) -> _Ids:
        """Return the ids of ``text``, uint32 [n], as the library gives them."""
        blocks = (text[at : at + self._window] for at in range(0, len(text), self._window))
        if not any(map(is_one_run, blocks)):  # so no pretoken is long, and splitting takes most of the time
            return _ids(self._inner.encode_batch_fast([text], add_special_tokens=False)[0])
        spans = [span for _, span in self._inner.pre_tokenizer.pre_tokenize_str(text)]
        parts: list[_Ids] = []
        short: list[str] = []
        for begin, end in spans:
            if end - begin <= 2 * self._window:
                short.append(text[begin:end])
            else:
                parts += [self._together(short), self._by_windows(text[begin:end])]
                short = []
        return np.concatenate([*parts, self._together(short)])

    def _together(self, texts: list[str]) -> _Ids:
        """The ids of texts that are not split, concatenated."""
        return _ids(self._merger.encode_batch_fast([texts], True, add_special_tokens=False)[0])

    def _each(self, texts: list[str]) -> list[_Ids]:
        """The ids of each text, which is not split."""
        return [
            _ids(encoding) for encoding in self._merger.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def _by_windows(self, pretoken: str) -> _Ids:
        """The ids of one pretoken. Windows that share no token with the next one become one with it."""
        size = len(pretoken)
        begins = range(0, size - self._overlap, self._window - self._overlap)
        windows = [(begin, min(size, begin + self._window)) for begin in begins]
        encoded = self._each([pretoken[begin:end] for begin, end in windows])
        joints = self._joints(pretoken, windows, encoded)
        if None in joints:
            windows = _merged(windows, joints)
            encoded = self._each([pretoken[begin:end] for begin, end in windows])
            joints = self._joints(pretoken, windows, encoded)
        found = [joint for joint in joints if joint is not None]
        if len(found) < len(joints):
            return self._each([pretoken])[0]
        firsts = [0, *(first for _, first in found)]
        ends = [*(end for end, _ in found), None]
        return np.concatenate([ids[a:b] for ids, a, b in zip(encoded, firsts, ends, strict=True)])

    def _joints(
        self, pretoken: str, windows: list[tuple[int, int]], encoded: list[_Ids]
    ) -> list[tuple[int, int] | None]:
        """For each window and the next, as :func:`_joint`."""
        places: list[_Ints] = []
        at, byte = 0, 0
        for (begin, _), ids in zip(windows, encoded, strict=True):
            byte += len(pretoken[at:begin].encode())
            at = begin
            places.append(byte + np.concatenate([[0], np.cumsum(self._token_bytes[ids])]))
        return [_joint(left, right) for left, right in pairwise(places)]


def is_one_run(text: str) -> bool:
    """Whether no border between words can be in ``text``: all letters, digits, white space or other signs."""
    return text.isalpha() or text.isnumeric() or text.isspace() or _LETTER_OR_BLANK.search(text) is None


def _ids(encoding: Encoding) -> _Ids:
    return np.array(encoding.ids, dtype=np.uint32)


def _joint(left: _Ints, right: _Ints) -> tuple[int, int] | None:
    """How many tokens to take of ``left``, and how many to leave of ``right``; None if they share no token.

    Both are the places in bytes of the borders of tokens; the windows overlap.
    """
    _, ends, firsts = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    shared = np.flatnonzero((ends > 0) & (firsts > 0) & (left[ends - 1] == right[np.maximum(firsts - 1, 0)]))
    if not len(shared):
        return None
    middle = shared[len(shared) // 2]
    return int(ends[middle]), int(firsts[middle])


def _merged(windows: list[tuple[int, int]], joints: list[tuple[int, int] | None]) -> list[tuple[int, int]]:
    merged = windows[:1]
    for window, joint in zip(windows[1:], joints, strict=True):
        if joint is None:
            merged[-1] = (merged[-1][0], window[1])
        else:
            merged.append(window)
    return merged
