"""Finds which parts of texts occur word for word in the training tokens.

One pass over the token file. Windows of the file are hashed by differences of prefix sums modulo 2^64 (Karp
and Rabin, 1987), so a window of any length costs two look-ups; a small table leaves the few that may occur in
the texts; and each reported match was compared token by token. No occurrence is missed: equal windows have
equal hashes. (Two different n-grams of the texts with the same hash would count as one: with ten thousand
n-grams, once in 10^11 searches.) The memory does not depend on the file's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cpulm.data.tokenizer import Tokenizer
from cpulm.events import Listener
from cpulm.progress import Stage

Ids: TypeAlias = npt.NDArray[Any]
Ints: TypeAlias = npt.NDArray[np.int64]
Hashes: TypeAlias = npt.NDArray[np.uint64]

LENGTHS = (8, 16, 32, 64)
"""The lengths of n-grams, in tokens, whose shares are reported; the first is the shortest match."""

_AROUND_TOKENS = 24
_CHUNK_TOKENS = 1 << 17
_TABLE_BITS = 18
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64


@dataclass(frozen=True)
class MemorizedPassage:
    """The longest passage of the texts that occurs in the training data.

    Attributes:
        tokens: its length; ``text`` is its text.
        sample: the number of the text that contains it; ``start`` is its position there, in tokens.
        document: the number of the training document, from 0; ``offset`` is its position there, in tokens.
        before: the training text before it; ``after`` is the text after it.
    """

    tokens: int
    text: str
    sample: int
    start: int
    document: int
    offset: int
    before: str
    after: str


@dataclass(frozen=True)
class Memorized:
    """How much of some texts occurs in the training data.

    Attributes:
        ngrams: n-grams in the texts, by their length.
        found: how many of them occur in the training data.
        longest: the longest passage; None if none is as long as the shortest n-gram.
    """

    ngrams: dict[int, int]
    found: dict[int, int]
    longest: MemorizedPassage | None

    @property
    def shares(self) -> dict[int, float]:
        """The fraction of n-grams that occur in the training data, for each length."""
        return {n: self.found[n] / count for n, count in self.ngrams.items() if count}


def find_memorized(
    groups: Sequence[Sequence[Sequence[int]]],
    train: Ids,
    tokenizer: Tokenizer,
    *,
    emit: Listener,
    should_stop: Callable[[], bool],
) -> list[Memorized]:
    """Search the training tokens for each group of texts, given as tokens.

    Args:
        groups: groups of texts as the tokenizer encodes them, without the end-of-text token.
        train: 1-D, usually a memory map; the end-of-text token follows each document.

    Raises:
        StoppedError: if ``should_stop`` returned True.
    """
    overlap = max((len(text) for texts in groups for text in texts), default=0)
    most = max((sum(map(len, texts)) for texts in groups), default=0)
    hasher = _Hasher(tokenizer.vocab_size, max(most, _CHUNK_TOKENS + overlap))
    wanted = [_TextGroup(texts, hasher) for texts in groups]
    flat = np.asarray(train)
    with Stage("searching the training tokens", len(flat), "tokens", emit, should_stop) as stage:
        for begin in range(0, len(flat), _CHUNK_TOKENS):
            window = _HashedTokens(flat[begin : begin + _CHUNK_TOKENS + overlap], hasher)
            positions = min(_CHUNK_TOKENS, len(flat) - begin)
            for group in wanted:
                group.look_in(window, positions, begin)
            stage.advance(positions)
    return [group.result(flat, tokenizer) for group in wanted]


class _Hasher:
    """Powers of the base and their inverses, and a random word for each token."""

    def __init__(self, vocab_size: int, tokens: int) -> None:
        self.words = _words(vocab_size)
        self.powers = _powers(_BASE, tokens)
        self.inverses = _powers(pow(_BASE, -1, 2**64), tokens + 1)


def _words(vocab_size: int) -> Hashes:
    return np.random.default_rng(0).integers(0, 2**64, vocab_size, dtype=np.uint64)


def _powers(base: int, count: int) -> Hashes:
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    powers: Hashes = np.multiply.accumulate(factors)
    return powers


class _HashedTokens:
    """A span of tokens whose windows of any length can be hashed."""

    def __init__(self, tokens: Ids, hasher: _Hasher) -> None:
        self.tokens, self._inverses = tokens, hasher.inverses
        self._sums = np.zeros(len(tokens) + 1, dtype=np.uint64)
        np.cumsum(hasher.words[tokens] * hasher.powers[: len(tokens)], out=self._sums[1:])

    def all(self, length: int, count: int) -> Hashes:
        """Hashes of the complete windows among those that begin at the first ``count`` places."""
        count = max(0, min(count, len(self.tokens) - length + 1))
        hashes: Hashes = self._sums[length : length + count] - self._sums[:count]
        hashes *= self._inverses[:count]
        return hashes

    def at(self, places: Ints, length: int) -> Hashes:
        """Hashes of the windows at ``places``, all of which are complete."""
        hashes: Hashes = (self._sums[places + length] - self._sums[places]) * self._inverses[places]
        return hashes


@dataclass(frozen=True)
class _Ngrams:
    """The n-grams of a group of texts: their distinct hashes, ascending, with first place and count."""

    hashes: Hashes
    places: Ints
    counts: Ints

    @cached_property
    def table(self) -> npt.NDArray[np.bool_]:
        """Whether any hash has these upper bits, indexed by them."""
        table = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        table[_upper_bits(self.hashes)] = True
        return table

    def look_up(self, hashes: Hashes) -> Ints:
        """The number of each hash; -1 if it is missing."""
        if not len(self.hashes):
            return np.full(len(hashes), -1)
        numbers = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[numbers] == hashes, numbers, -1)


def _upper_bits(hashes: Hashes) -> Hashes:
    # The lower bits of such a hash depend only on the lower bits of the tokens' words.
    upper: Hashes = hashes >> np.uint64(64 - _TABLE_BITS)
    return upper


class _TextGroup:
    """A group of texts, and what was found of it so far."""

    def __init__(self, texts: Sequence[Sequence[int]], hasher: _Hasher) -> None:
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._tokens = np.array([token for text in texts for token in text], dtype=np.int64)
        self._ends = np.cumsum(lengths)
        self._room = np.repeat(self._ends, lengths) - np.arange(len(self._tokens))
        self._hashed = _HashedTokens(self._tokens, hasher)
        self._levels = {n: self._ngrams(n) for n in LENGTHS}
        self._found = {n: np.zeros(len(level.hashes), dtype=np.bool_) for n, level in self._levels.items()}
        self._longest, self._where = LENGTHS[0] - 1, (0, 0)
        self._next = self._levels[LENGTHS[0]]

    def _ngrams(self, length: int) -> _Ngrams:
        places = np.flatnonzero(self._room >= length)
        hashes, first, counts = np.unique(
            self._hashed.at(places, length), return_index=True, return_counts=True
        )
        return _Ngrams(hashes, places[first], counts)

    def look_in(self, window: _HashedTokens, positions: int, begin: int) -> None:
        """Search for the n-grams at the first ``positions`` places of ``window``, beginning at ``begin``."""
        for n in LENGTHS:
            level = self._levels[n]
            if n == LENGTHS[0]:
                hashes = window.all(n, positions)
                places = np.flatnonzero(level.table[_upper_bits(hashes)])
                numbers = level.look_up(hashes[places])
            else:
                places = places[places + n <= len(window.tokens)]
                numbers = level.look_up(window.at(places, n))
            places, numbers = places[numbers >= 0], numbers[numbers >= 0]
            if n <= self._longest + 1:
                candidates = places
            if not len(places):
                break
            self._note(n, window, places, numbers)
        self._extend(window, candidates, begin)

    def _note(self, n: int, window: _HashedTokens, places: Ints, numbers: Ints) -> None:
        """Mark the n-grams at ``places`` after comparing each token by token."""
        level, found = self._levels[n], self._found[n]
        open_ = ~found[numbers]
        places, numbers = places[open_], numbers[open_]
        while len(numbers):
            fresh, first = np.unique(numbers, return_index=True)
            same = self._equal(window, places[first], level.places[fresh], n)
            found[fresh[same]] = True
            # If another window has the same hash by chance, the next place is checked.
            left = np.ones(len(numbers), dtype=np.bool_)
            left[first] = False
            left &= ~found[numbers]
            places, numbers = places[left], numbers[left]

    def _extend(self, window: _HashedTokens, candidates: Ints, begin: int) -> None:
        """Lengthen the longest passage, token by token, while one of the candidates matches."""
        while True:
            n = self._longest + 1
            candidates = candidates[candidates + n <= len(window.tokens)]
            numbers = self._next.look_up(window.at(candidates, n))
            candidates, numbers = candidates[numbers >= 0], numbers[numbers >= 0]
            starts = self._next.places[numbers]
            same = np.flatnonzero(self._equal(window, candidates, starts, n))
            if not len(same):
                return
            self._longest = n
            self._where = int(starts[same[0]]), begin + int(candidates[same[0]])
            self._next = self._ngrams(n + 1)

    def _equal(self, window: _HashedTokens, places: Ints, starts: Ints, n: int) -> npt.NDArray[np.bool_]:
        """Whether the ``n`` tokens at ``places`` of the file equal those at ``starts`` of the texts."""
        equal = np.ones(len(places), dtype=np.bool_)
        for shift in range(n):
            equal &= window.tokens[places + shift] == self._tokens[starts + shift]
        return equal

    def result(self, train: Ids, tokenizer: Tokenizer) -> Memorized:
        return Memorized(
            ngrams={n: int(level.counts.sum()) for n, level in self._levels.items()},
            found={n: int(level.counts[self._found[n]].sum()) for n, level in self._levels.items()},
            longest=self._passage(train, tokenizer) if self._longest >= LENGTHS[0] else None,
        )

    def _passage(self, train: Ids, tokenizer: Tokenizer) -> MemorizedPassage:
        start, place = self._where
        end = place + self._longest
        sample = int(np.searchsorted(self._ends, start, side="right"))
        document, first = _document_at(train, place, tokenizer.eot_id)
        behind = train[end : end + _AROUND_TOKENS]
        cut = np.flatnonzero(behind == tokenizer.eot_id)
        return MemorizedPassage(
            tokens=self._longest,
            text=tokenizer.decode(train[place:end].tolist()),
            sample=sample,
            start=start - (int(self._ends[sample - 1]) if sample else 0),
            document=document,
            offset=place - first,
            before=tokenizer.decode(train[max(first, place - _AROUND_TOKENS) : place].tolist()),
            after=tokenizer.decode(behind[: cut[0] if len(cut) else None].tolist()),
        )


def _document_at(train: Ids, place: int, eot_id: int) -> tuple[int, int]:
    """The number of the document that contains the token at ``place``, and where that document begins."""
    document, first = 0, 0
    for begin in range(0, place, _CHUNK_TOKENS):
        ends = np.flatnonzero(train[begin : min(place, begin + _CHUNK_TOKENS)] == eot_id)
        if len(ends):
            document, first = document + len(ends), begin + int(ends[-1]) + 1
    return document, first
