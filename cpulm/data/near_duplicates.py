"""Finds documents that are almost the same as one before, by MinHash (Broder, 1997) and its bands.

The words of a document are taken four at a time; two documents are near if about 80% of these are in both. Of
128 hash functions the smallest values are kept, in 16 bands of 8: documents with an equal band are compared.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

_HASHES, _BANDS = 128, 16
_SHINGLE_WORDS = 4
_NEAR = 0.8
_PRIME = (1 << 31) - 1


class NearDuplicates:
    """Counts near duplicates among the first documents, in bounded memory.

    Attributes:
        CHARACTERS: of a document's beginning that are compared.
        found: documents that are near to one before.
        compared: documents that were compared, at most ``MOST``.
        too_short: documents that were not, because they have fewer than ``LEAST_WORDS``.
        too_late: documents that were not, because so many were compared before.
    """

    CHARACTERS = 8192
    MOST = 20_000
    LEAST_WORDS = 2 * _SHINGLE_WORDS

    def __init__(self) -> None:
        self.found = self.compared = self.too_short = self.too_late = 0
        random = np.random.default_rng(0)
        self._factor = random.integers(1, _PRIME, _HASHES, dtype=np.uint64)[:, None]
        self._offset = random.integers(0, _PRIME, _HASHES, dtype=np.uint64)[:, None]
        self._bands: dict[tuple[int, bytes], int] = {}
        self._signatures: list[npt.NDArray[np.uint32]] = []

    @property
    def not_compared(self) -> dict[str, int]:
        """How many documents were not compared, by the reason."""
        reasons = {
            f"with fewer than {self.LEAST_WORDS} words": self.too_short,
            f"after the first {self.MOST:,}": self.too_late,
        }
        return {reason: count for reason, count in reasons.items() if count}

    def add(self, text: str) -> None:
        """Compare a document with those before it, by its beginning."""
        words = text.split()
        if len(words) < self.LEAST_WORDS:
            self.too_short += 1
            return
        if self.compared >= self.MOST:
            self.too_late += 1
            return
        self.compared += 1
        signature = self._signature(words)
        keys = [(band, part.tobytes()) for band, part in enumerate(signature.reshape(_BANDS, -1))]
        others = {self._bands[key] for key in keys if key in self._bands}
        if any(np.mean(self._signatures[other] == signature) >= _NEAR for other in others):
            self.found += 1
            return
        for key in keys:
            self._bands.setdefault(key, len(self._signatures))
        self._signatures.append(signature)

    def _signature(self, words: list[str]) -> npt.NDArray[np.uint32]:
        shingles = {" ".join(words[n : n + _SHINGLE_WORDS]) for n in range(len(words) - _SHINGLE_WORDS + 1)}
        hashes = np.array([zlib.crc32(one.encode()) for one in shingles], dtype=np.uint64) % _PRIME
        smallest: npt.NDArray[np.uint64] = ((self._factor * hashes + self._offset) % _PRIME).min(axis=1)
        return smallest.astype(np.uint32)
