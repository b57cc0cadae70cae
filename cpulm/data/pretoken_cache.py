"""Fast byte-level BPE for large texts: each distinct piece of text is encoded once, then looked up.

Vector operations on the bytes cut the text at borders that no token can span under the vocabulary's
splitting expression, so the ids are those of the ``tokenizers`` library on the uncut text. The same few
thousand pieces make up most of any text: their ids are kept in a hash table, which vector operations read as
well. Text whose pieces hardly repeat (base64, random names) goes to the library in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as JsonTokenizer

from cpulm.data.long_pretokens import LONG_BYTES, LongTextEncoder
from cpulm.data.piece_borders import END_MARK, BorderPattern, Ints, piece_starts

Ids: TypeAlias = npt.NDArray[np.uint32]
Words: TypeAlias = npt.NDArray[np.uint64]


_SHARED_BYTES = 64
"""Longer pieces hardly ever repeat, and would fill the memory."""
_KEY_BYTES = 15
"""Pieces up to this long fit, with their length, into the table's 16-byte keys."""
_MULTIPLIERS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_FIRST = np.array([0] + [(1 << 8 * n) - 1 for n in range(1, 9)], dtype=np.uint64)
_PADDING = bytes(16)
_JUDGED_BYTES = 1 << 16
_T = TypeVar("_T", bound=np.generic)


class PieceEncoder:
    """Encodes text through a table of the pieces seen so far.

    Not thread-safe: give each thread its own encoder, and all of them the same ``known``.

    Args:
        inner: a byte-level BPE tokenizer.
        pattern: the expression by which it splits text.
        eot_id: the id that stands for ``END_MARK``.
        capacity: distinct pieces to remember; beyond it, the table starts empty again.
        known: pieces that any thread has encoded, with their ids as uint32; shared, so that each is
            encoded once and not once per thread.
        judged_bytes: in less text not even the pieces of English repeat; all are remembered.
    """

    def __init__(
        self,
        inner: JsonTokenizer,
        pattern: BorderPattern,
        eot_id: int,
        capacity: int,
        known: dict[bytes, bytes],
        judged_bytes: int = _JUDGED_BYTES,
    ) -> None:
        self._inner = inner
        self._judged_bytes = judged_bytes
        self._long_texts = LongTextEncoder(inner)
        self._pattern = pattern
        self._known = known
        self._eot_id = eot_id
        self._capacity = capacity
        self._table = _Table()
        self._long: dict[bytes, int] = {}
        self._long_bytes = 0
        self._forget()

    def encode(self, data: bytes) -> Ids:
        """Encode UTF-8 ``data``, with ``END_MARK`` after each document that ends, to ids, uint32 [n]."""
        if not data:
            return np.zeros(0, dtype=np.uint32)
        if self._table.size > self._capacity or self._long_bytes > 16 * self._capacity:
            self._forget()
        starts = piece_starts(data, self._pattern)
        lengths = np.diff(starts, append=len(data))
        keys = _keys(data, starts, lengths)
        entries = self._table.look_up(*keys)
        unknown = np.flatnonzero(entries < 0)
        _, firsts = np.unique(_hashed(keys[0][unknown], keys[1][unknown]), return_index=True)
        if len(data) >= self._judged_bytes and 2 * int(lengths[unknown[firsts]].sum()) > len(data):
            return self._without_table(data, starts, lengths)
        where = zip(starts[unknown].tolist(), lengths[unknown].tolist(), strict=True)
        pieces = [data[start : start + length] for start, length in where]
        entries[unknown] = self._learned(pieces, keys[0][unknown], keys[1][unknown])
        return self._table.ids_of(entries)

    def _without_table(self, data: bytes, starts: Ints, lengths: Ints) -> Ids:
        """The ids of text of which more than half is pieces that occur once: a table of them costs more
        time than it saves."""
        ends = np.frombuffer(data, dtype=np.uint8)[starts] == END_MARK
        alone = np.flatnonzero(ends | (lengths > LONG_BYTES))
        between, at = [], 0
        for begin, length in zip(starts[alone].tolist(), lengths[alone].tolist(), strict=True):
            between.append(data[at:begin].decode())
            at = begin + length
        between.append(data[at:].decode())
        encodings = self._inner.encode_batch_fast(between, add_special_tokens=False)
        parts = [np.array(encodings[0].ids, dtype=np.uint32)]
        for number, encoding in zip(alone.tolist(), encodings[1:], strict=True):
            piece = data[starts[number] : starts[number] + lengths[number]]
            ids = [self._eot_id] if ends[number] else self._long_texts.encode(piece.decode())
            parts.append(np.array(ids, dtype=np.uint32))
            parts.append(np.array(encoding.ids, dtype=np.uint32))
        return np.concatenate(parts)

    def _forget(self) -> None:
        self._table = _Table()
        self._long = {}
        self._long_bytes = 0
        self._learn({bytes([END_MARK]): np.uint32(self._eot_id).tobytes()})

    def _learned(self, texts: list[bytes], low: Words, high: Words) -> Ints:
        """Return the entries of pieces that the table's keys do not find; new ones are added."""
        fresh = set(texts) - self._long.keys()
        if fresh:
            # Looked up once per text: other threads may add it, or clear everything, at any moment.
            told = {text: run for text in fresh if (run := self._known.get(text)) is not None}
            self._learn(told | self._encoded([text for text in fresh if text not in told]))
        entries = np.array([self._long.get(text, -1) for text in texts], dtype=np.int64)
        short = np.flatnonzero(entries < 0)
        entries[short] = self._table.look_up(low[short], high[short])
        return entries

    def _encoded(self, texts: list[bytes]) -> dict[bytes, bytes]:
        """Encode each text with the library and record its ids for all threads."""
        runs = {text: ids.tobytes() for text, ids in zip(texts, self._ids_of(texts), strict=True)}
        if len(self._known) > self._capacity:
            self._known.clear()
        self._known.update((text, run) for text, run in runs.items() if len(text) <= _SHARED_BYTES)
        return runs

    def _ids_of(self, texts: list[bytes]) -> Iterator[Ids]:
        """Yield the ids of each text, uint32."""
        short = [text.decode() for text in texts if len(text) <= LONG_BYTES]
        encodings = iter(self._inner.encode_batch_fast(short, add_special_tokens=False))
        for text in texts:
            if len(text) <= LONG_BYTES:
                yield np.array(next(encodings).ids, dtype=np.uint32)
            else:
                yield self._long_texts.encode(text.decode())

    def _learn(self, runs: dict[bytes, bytes]) -> None:
        """Add pieces that the table lacks."""
        lengths = np.array([len(text) for text in runs], dtype=np.int64)
        first = self._table.size
        self._table.add(*_keys(b"".join(runs), np.cumsum(lengths) - lengths, lengths), list(runs.values()))
        long = {text: first + number for number, text in enumerate(runs) if len(text) > _KEY_BYTES}
        self._long.update(long)
        self._long_bytes += sum(map(len, long))


class _Table:
    """A hash table from 16-byte keys to runs of ids, with linear probing, at most half full.

    A high half of 0 is not a key: such entries are found by their number only.
    """

    def __init__(self) -> None:
        self.size = 0
        self._slots = np.full(1 << 12, -1, dtype=np.int32)
        self._low = np.zeros(1 << 10, dtype=np.uint64)
        self._high = np.zeros(1 << 10, dtype=np.uint64)
        self._offsets = np.zeros(1 << 10, dtype=np.int64)
        self._counts = np.zeros(1 << 10, dtype=np.int64)
        self._store = np.zeros(1 << 12, dtype=np.uint32)
        self._stored = 0

    def look_up(self, low: Words, high: Words) -> Ints:
        """Return the entry of each key, -1 for a missing key."""
        slots = _hashed(low, high)
        found = np.full(len(low), -1, dtype=np.int64)
        pending = np.arange(len(low))
        while len(pending):
            entries = self._slots[slots & (len(self._slots) - 1)]
            same = (self._low[entries] == low) & (self._high[entries] == high) & (entries >= 0) & (high > 0)
            found[pending[same]] = entries[same]
            further = np.flatnonzero((entries >= 0) & ~same & (high > 0))
            pending, low, high, slots = pending[further], low[further], high[further], slots[further] + 1
        return found

    def add(self, low: Words, high: Words, runs: list[bytes]) -> None:
        """Add keys that the table lacks, each with its ids as the bytes of uint32."""
        counts = np.array([len(run) for run in runs], dtype=np.int64) // 4
        new = slice(self.size, self.size + len(runs))
        stored = slice(self._stored, self._stored + int(counts.sum()))
        self._low = _with_capacity(self._low, new.stop)
        self._high = _with_capacity(self._high, new.stop)
        self._offsets = _with_capacity(self._offsets, new.stop)
        self._counts = _with_capacity(self._counts, new.stop)
        self._store = _with_capacity(self._store, stored.stop)
        self._low[new], self._high[new], self._counts[new] = low, high, counts
        self._offsets[new] = np.cumsum(counts) - counts + stored.start
        self._store[stored] = np.frombuffer(b"".join(runs), dtype=np.uint32)
        self.size, self._stored = new.stop, stored.stop
        entered = np.arange(new.start, new.stop)
        if 2 * self.size > len(self._slots):
            self._slots = np.full(1 << (4 * self.size).bit_length(), -1, dtype=np.int32)
            entered = np.arange(self.size)
        self._place(entered[self._high[entered] > 0])

    def ids_of(self, entries: Ints) -> Ids:
        """Return the runs of ids of ``entries``, concatenated."""
        counts = self._counts[entries]
        ends = np.cumsum(counts)
        # Position in the store = where the run begins + the distance of this id from the run's first.
        where = np.repeat(self._offsets[entries] - ends + counts, counts)
        where += np.arange(len(where))
        return self._store[where]

    def _place(self, entries: Ints) -> None:
        slots = _hashed(self._low[entries], self._high[entries])
        while len(entries):
            at = slots & (len(self._slots) - 1)
            free = self._slots[at] < 0
            # If several want one slot, the last gets it and the others probe further.
            self._slots[at[free]] = entries[free]
            homeless = self._slots[at] != entries
            entries, slots = entries[homeless], slots[homeless] + 1


def _keys(data: bytes, starts: Ints, lengths: Ints) -> tuple[Words, Words]:
    """Each piece's bytes 0-7, and its bytes 8-14 with the length as top byte; high is 0 for longer pieces."""
    # A view of the 8 bytes at every position, so that one gather reads a whole word.
    words = np.ndarray((len(data) + 9,), dtype="<u8", buffer=data + _PADDING, strides=(1,))
    low = words[starts] & _FIRST[np.minimum(lengths, 8)]
    short = lengths <= _KEY_BYTES
    high = words[starts + np.minimum(lengths, 8)] & _FIRST[np.clip(lengths - 8, 0, 7)]
    high |= lengths.astype(np.uint64) << np.uint64(56)
    return low, np.where(short, high, np.uint64(0))


def _hashed(low: Words, high: Words) -> Ints:
    mixed = low * _MULTIPLIERS[0] ^ high * _MULTIPLIERS[1]
    mixed = (mixed ^ (mixed >> np.uint64(32))) * _MULTIPLIERS[0]
    slots: Ints = (mixed >> np.uint64(33)).astype(np.int64)
    return slots


def _with_capacity(array: npt.NDArray[_T], size: int) -> npt.NDArray[_T]:
    """Return ``array`` itself if it holds ``size``, else a copy with twice that capacity."""
    if size <= len(array):
        return array
    grown = np.zeros(2 * size, dtype=array.dtype)
    grown[: len(array)] = array
    return grown
