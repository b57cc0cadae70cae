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
_END = bytes([END_MARK])
_LONG_BYTES = 1 << 14
"""The method for one document does not release the interpreter's lock; the one that does takes 38 us more."""
_ONE_ROW = PadTruncate(0)

_MARK = "\0"
"""Stands for the end of a document in what the library encodes: a special token that no text has, as readers
refuse or replace NUL. To give it each document took twice the time of the text in one piece."""

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
        self._mark_id = max(inner.get_vocab().values()) + 1
        mark = {"id": self._mark_id, "content": _MARK, "special": True, "normalized": False}
        # Others it would find in text.
        parts["added_tokens"] = [{**mark, "single_word": False, "lstrip": False, "rstrip": False}]
        self._json = json.dumps(parts)
        self._inner = inner
        self._eot_id = eot_id
        self._lock = threading.Lock()
        self._encoder: BPETokenizer | SentencePieceTokenizer = load_hf_json(self._json)
        self._encoded_bytes = 0

    def encode(self, data: bytes) -> Ids:
        """Encode UTF-8 ``data``, with ``END_MARK`` after each document that ends, to ids, uint32 [n]."""
        if _MARK.encode() in data or self._has_new_characters(data):
            return self._by_library(data.split(_END))
        ids = self._fast(data.replace(_END, _MARK.encode()))
        ids[ids == self._mark_id] = self._eot_id
        return ids

    def _fast(self, data: bytes) -> Ids:
        # One caller at a time, with one cache: encoding is faster than reading.
        with self._lock:
            if self._encoded_bytes > max(_REMEMBERED_BYTES, _TIMES_VOCABULARY * len(self._json)):
                self._encoder, self._encoded_bytes = load_hf_json(self._json), 0
            self._encoded_bytes += len(data)
            if len(data) < _LONG_BYTES:
                return self._encoder.encode(data)
            ids: Ids = self._encoder.encode_batch_padded([data], _ONE_ROW, parallel=False)[0][0]
            return ids

    def _by_library(self, documents: list[bytes]) -> Ids:
        texts = [document.decode() for document in documents]
        encodings = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        ids = [[*encoding.ids, self._eot_id] for encoding in encodings]
        return np.concatenate([np.array(each, dtype=np.uint32) for each in ids])[:-1]

    @staticmethod
    def _has_new_characters(data: bytes) -> bool:
        if not any(beginning in data for beginning in _THEIR_BEGINNINGS):
            return False
        return _NEW_IN_UNICODE.search(data.decode("utf-8", "surrogateescape")) is not None
