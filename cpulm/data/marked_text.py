"""Marks on their way through the encoder, and the mask of the tokens that count in the loss.

For the encoder marks stand in the text, in a form that no valid text has. Special tokens become their ids;
where the loss begins or stops counting, two numbers beyond every vocabulary; LossMask takes these out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from cpulm.data.bpe_encoder import Ids
from cpulm.data.encoder import (
    END,
    CountingEncode,
    bulk_encoder,
    bytes_encoder,
    counting_losses,
    to_bytes,
    to_text,
)
from cpulm.data.marks import LOSS_OFF, LOSS_ON, Mark
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError

Bools = npt.NDArray[np.bool_]

_MARK = "\udcfe"
"""Begins and ends a mark in text, like ``END`` half a surrogate pair."""
_MARK_BYTE = to_bytes(_MARK)
_ANY = re.compile(f"{END}|{_MARK}([^{_MARK}]+){_MARK}")
_FIRST_LOSS_ID = 0xFFFFFFFE
_LOSS_IDS = {LOSS_OFF: _FIRST_LOSS_ID, LOSS_ON: _FIRST_LOSS_ID + 1}


def encoder_of_jobs(tokenizer: Tokenizer) -> Callable[[bytes], tuple[Ids, int]]:
    """Encodes text with marks as UTF-8, as :func:`encoder_of_marks`; as bytes, where that can be."""
    of_bytes = bytes_encoder(tokenizer)
    of_text = bulk_encoder(tokenizer) if of_bytes is None else lambda text: of_bytes(to_bytes(text))
    of_marks = encoder_of_marks(tokenizer, counting_losses(tokenizer, of_text))

    def encoded(data: bytes) -> tuple[Ids, int]:
        if of_bytes is None or _MARK_BYTE in data:
            return of_marks(to_text(data))
        return of_bytes(data), 0

    return encoded


def marked(text: str, marks: Iterable[Mark]) -> str:
    """Put ``marks``, in the order of their places, into ``text``."""
    parts, begin = [], 0
    for place, name in marks:
        parts += [text[begin:place], _MARK, name, _MARK]
        begin = place
    return "".join([*parts, text[begin:]])


def encoder_of_marks(tokenizer: Tokenizer, encode: CountingEncode) -> CountingEncode:
    """Return ``encode`` for text with marks: special tokens become their ids, those of the loss theirs.

    Each mark is a border: no token spans it.

    Raises:
        DataError: when it is called, if a special token is not in the vocabulary.
    """
    numbers = dict(_LOSS_IDS)

    def number(name: str) -> int:
        if not name:
            return tokenizer.eot_id
        if name not in numbers:
            numbers[name] = special_id(tokenizer, name)
        return numbers[name]

    def encoded(text: str) -> tuple[Ids, int]:
        if _MARK not in text:
            return encode(text)
        ids, lost = encode(_ANY.sub(END, text))
        # Text gives no end-of-text token, so those that are there are the marks, in their order.
        ids[ids == tokenizer.eot_id] = [number(found[1] or "") for found in _ANY.finditer(text)]
        return ids, lost

    return encoded


def special_id(tokenizer: Tokenizer, name: str) -> int:
    """The id of the special token ``name``.

    Raises:
        DataError: if the vocabulary has none of this name.
    """
    found = tokenizer.inner.token_to_id(name)
    if found is None or found not in tokenizer.special_ids:
        raise DataError(
            f"the vocabulary has no special token {name}",
            "add it to the vocabulary, or let cpulm make one: it adds those of a template",
        )
    return int(found)


class LossMask:
    """Takes the marks of the loss out of ids, job by job, and tells which tokens count.

    After the end of a document the loss counts; the end-of-text token belongs to the document that it ends.

    Attributes:
        counts: whether the next token counts if no mark is before it.
    """

    def __init__(self, eot_id: int) -> None:
        self.counts = True
        self._eot_id = eot_id

    def take(self, ids: Ids) -> tuple[Ids, Bools]:
        """Return the ids of tokens, and which of them count in the loss."""
        if not len(ids):
            return ids, np.zeros(0, dtype=bool)
        change = np.full(len(ids) + 1, -1, dtype=np.int8)
        change[0] = self.counts
        change[np.flatnonzero(ids == self._eot_id) + 1] = 1
        marks = ids >= _FIRST_LOSS_ID
        change[:-1][marks] = ids[marks] == _LOSS_IDS[LOSS_ON]
        latest = np.maximum.accumulate(np.where(change >= 0, np.arange(len(change)), 0))
        counts = change[latest].astype(bool)
        self.counts = bool(counts[-1])
        return ids[~marks], counts[:-1][~marks]


def counted_bytes(text: str, marks: Iterable[Mark]) -> int:
    """Bytes of the text of a document, or of a chunk that is not marked, that count in the loss."""
    size, begin, counts = 0, 0, True
    for place, name in (*marks, Mark(len(text), LOSS_ON)):
        if name in _LOSS_IDS:
            size += len(text[begin:place].encode()) if counts else 0
            begin, counts = place, name == LOSS_ON
    return size


def without_loss_marks(ids: Ids) -> Ids:
    """The ids of tokens alone."""
    return ids[ids < _FIRST_LOSS_ID]


def pack(bits: Bools) -> bytes:
    """One bit for each token, the first in the lowest bit of the first byte."""
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(packed: npt.NDArray[np.uint8], places: npt.NDArray[np.int64]) -> Bools:
    """The bits at ``places``, of any shape."""
    bits: Bools = (packed[places >> 3] >> (places & 7).astype(np.uint8) & 1).astype(bool)
    return bits
