"""Byte-level BPE for large texts: the library ``gigatoken``, with the ids of the ``tokenizers`` library."""

from __future__ import annotations

import json
import re
import threading
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from gigatoken.gigatoken_rs import BPETokenizer, PadTruncate, SentencePieceTokenizer, load_hf_json
from tokenizers import Tokenizer as JsonTokenizer

from cpulm.data.piece_borders import END_MARK

Ids: TypeAlias = npt.NDArray[np.uint32]

_REMEMBERED_BYTES, _TIMES_VOCABULARY = 1 << 24, 4
"""Bytes of text after which the encoder is built again, because it caches every word, with up to 15 bytes of
memory for a byte of new words; at least so many times the size of ``tokenizer.json``, slow to read."""
_LONG_BYTES = 1 << 14
"""The method for one document does not release the interpreter's lock; the one that does takes 38 us more."""
_MOST_PADDING = 8
"""Documents are encoded together if all as long as the longest one would be at most so much text."""
_NARROW = 256
"""Tokens of the longest of them up to which a mask takes the padding out in less time than cutting each."""

# Letters, digits and signs of newer versions of Unicode: gigatoken knows them, tokenizers does not.
_NEW_IN_UNICODE = re.compile(
    "[\u088f\u0c5c\u0cdc\ua7ce\ua7cf\ua7d2\ua7d4\ua7f1\U00010940-\U00010959\U00010ec5-\U00010ec7"
    "\U00011db0-\U00011ddb\U00011de0-\U00011de9\U00016ea0-\U00016eb8\U00016ebb-\U00016ed3\U00016ff2-\U00016ff6"
    "\U000187f8-\U000187ff\U00018d09-\U00018d1e\U00018d80-\U00018df2\U0001e6c0-\U0001e6ff\U0002b73a-\U0002b73f"
    "\U0002cea2-\U0002cead\U000323b0-\U00033479]"
)
_THEIR_BEGINNINGS = (b"\xe0", b"\xea\x9f", b"\xf0")


class BpeEncoder:
    """Encodes text by a complete byte-level BPE vocabulary. Safe in several threads.

    Args:
        inner: the tokenizer, which splits by one of :data:`cpulm.data.splitting.SplittingPattern`.
        eot_id: the id that stands for ``END_MARK``.

    Raises:
        RuntimeError: if the library cannot use the vocabulary.
    """

    def __init__(self, inner: JsonTokenizer, eot_id: int) -> None:
        parts = json.loads(inner.to_str())
        parts["added_tokens"] = []  # it would find them in text
        self._json = json.dumps(parts)
        self._inner = inner
        self._end = np.array([eot_id], dtype=np.uint32)
        self._padded = PadTruncate(0, suffix=[eot_id])
        self._lock = threading.Lock()
        self._encoder: BPETokenizer | SentencePieceTokenizer = load_hf_json(self._json)
        self._encoded_bytes = 0

    def encode(self, data: bytes) -> Ids:
        """Encode UTF-8 ``data``, with ``END_MARK`` after each document that ends, to ids, uint32 [n]."""
        documents = data.split(bytes([END_MARK]))
        with_ends = self._by_library(documents) if self._has_new_characters(data) else self._fast(documents)
        return with_ends[:-1]

    def _fast(self, documents: list[bytes]) -> Ids:
        """The ids of all documents, with an end after each."""
        # One caller at a time, with one cache: encoding is faster than reading.
        with self._lock:
            if self._encoded_bytes > max(_REMEMBERED_BYTES, _TIMES_VOCABULARY * len(self._json)):
                self._encoder, self._encoded_bytes = load_hf_json(self._json), 0
            sizes = list(map(len, documents))
            self._encoded_bytes += sum(sizes)
            encoder = self._encoder
            if _LONG_BYTES <= len(sizes) * max(sizes) <= _MOST_PADDING * sum(sizes):
                return self._together(encoder, documents)
            return np.concatenate(
                [
                    part
                    for document in documents
                    for part in (
                        (encoder.encode(document), self._end)
                        if len(document) < _LONG_BYTES
                        else (self._together(encoder, [document]),)
                    )
                ]
            )

    def _together(self, encoder: BPETokenizer | SentencePieceTokenizer, documents: list[bytes]) -> Ids:
        rows, lengths = encoder.encode_batch_padded(documents, self._padded, parallel=False)
        width = rows.shape[1]
        if width <= _NARROW:
            narrow: Ids = rows[np.arange(width) < lengths[:, None]]
            return narrow
        return np.concatenate([row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)])

    def _by_library(self, documents: list[bytes]) -> Ids:
        texts = [document.decode() for document in documents]
        encodings = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        ends = self._end.tolist()
        return np.concatenate([np.array(encoding.ids + ends, dtype=np.uint32) for encoding in encodings])

    @staticmethod
    def _has_new_characters(data: bytes) -> bool:
        if not any(beginning in data for beginning in _THEIR_BEGINNINGS):
            return False
        return _NEW_IN_UNICODE.search(data.decode("utf-8", "surrogateescape")) is not None
