"""Chooses what is held out for validation: a share of the text's bytes, by hashes of the documents' names.

Whole documents are held out in the order of their hashes until the share is reached, so a document rarely
changes its split when others are added. A document too large for that gives its own end, and so does the one
at the border if it would miss the share by much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

SPLIT_VERSION = 2
"""Counts the rules of the choice: tokens that were split by others are not taken from the cache."""
TAIL_BYTES = 1000
"""An end shorter than this is too short to validate on: such a document is held out whole, or not at all."""

_LONG = 1 / 4
"""Documents larger than this part of the share are long: each gives its own end."""
_TOLERANCE = 1 / 8
"""The share is met if it is missed by at most this part of the smaller split."""
_SINGLES = 1 << 14
_RANGES = 1 << 14


def name_hash(name: str) -> float:
    """Map a name to a number in [0, 1) that depends on nothing else."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)


def name_hashes(file: str, numbers: Sequence[int]) -> npt.NDArray[np.float64]:
    """The :func:`name_hash` of ``file:number`` for each of the numbers, in half of the time."""
    begun = hashlib.blake2b(f"{file}:".encode("utf-8", "surrogateescape"), digest_size=7)
    digests = [b""]
    for number in numbers:
        hasher = begun.copy()
        hasher.update(b"%d" % number)
        digests.append(hasher.digest())
    return np.frombuffer(b"\0".join(digests), dtype=">u8").astype(np.float64) / (1 << 56)


@dataclass(frozen=True)
class HeldOut:
    """What is held out.

    Attributes:
        threshold: documents whose name's hash is at most this are held out whole.
        borders: where the held-out end of a document begins, in characters, by the document's number. The
            threshold does not count for these documents.
    """

    threshold: float
    borders: dict[int, int]

    def border(self, number: int, name: str) -> int | None:
        """Where the held-out part of a document begins, in characters; None if nothing of it is held out."""
        if number in self.borders:
            return self.borders[number]
        return 0 if name_hash(name) <= self.threshold else None


class _Share(NamedTuple):
    """Bytes of text under a hash: one document, or (number -1) all short ones in a range of hashes."""

    hash: float
    size: int
    characters: int
    number: int


class DocumentSizes:
    """The sizes of all documents by the hashes of their names, in bounded memory.

    Of more than 16,384 documents the longest 8,192 are kept; the others are only summed in ranges of hashes.
    """

    def __init__(self) -> None:
        self.total_bytes = 0
        self._singles: list[_Share] = []
        self._ranges: dict[int, int] = {}

    def add(self, number: int, name: str, characters: int, size: int) -> None:
        """Add a document of ``size`` bytes in UTF-8."""
        self._add([_Share(name_hash(name), size, characters, number)])

    def add_block(
        self, numbers: Sequence[int], hashes: Sequence[float], characters: Sequence[int], sizes: Sequence[int]
    ) -> None:
        """Add documents, with the hashes of their names, as :meth:`add` does one after the other."""
        self._add(list(map(_Share, hashes, sizes, characters, numbers)))

    def _add(self, shares: list[_Share]) -> None:
        self.total_bytes += sum(one.size for one in shares)
        while shares:
            room = _SINGLES + 1 - len(self._singles)
            self._singles += shares[:room]
            del shares[:room]
            if len(self._singles) > _SINGLES:
                self._sum_the_shortest()

    def _sum_the_shortest(self) -> None:
        self._singles.sort(key=lambda one: one.size)
        for one in self._singles[: _SINGLES // 2]:
            place = int(one.hash * _RANGES)
            self._ranges[place] = self._ranges.get(place, 0) + one.size
        del self._singles[: _SINGLES // 2]

    def state(self) -> dict[str, Any]:
        """All that is known of the documents, as JSON holds it."""
        return {"total": self.total_bytes, "singles": self._singles, "ranges": list(self._ranges.items())}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.total_bytes = state["total"]
        self._singles = [_Share(*one) for one in state["singles"]]
        self._ranges = dict(state["ranges"])

    def hold_out(self, fraction: float, *, whole: bool = False) -> HeldOut:
        """Choose about ``fraction`` of all bytes; neither split is empty.

        Args:
            whole: hold out whole documents only; of a single one nothing.
        """
        target = self.total_bytes * fraction
        tolerance = _TOLERANCE * min(target, self.total_bytes - target)
        borders: dict[int, int] = {}
        short = [_Share((place + 1) / _RANGES, size, 0, -1) for place, size in self._ranges.items()]
        missing = target
        for one in self._singles:
            if not whole and one.size > _LONG * target and one.size * fraction >= TAIL_BYTES:
                borders[one.number] = _border(one, fraction)
                missing -= one.size * fraction
            else:
                short.append(one)
        threshold = -1.0
        for one in sorted(short)[: -1 if whole else None]:
            if missing <= 0:
                break
            excess = one.size - missing
            if whole:
                threshold = one.hash if excess <= missing or threshold < 0 else threshold
            elif excess <= 0 or excess <= min(tolerance, missing) or (one.number < 0 and excess <= missing):
                threshold = one.hash
            elif missing > tolerance and one.number >= 0:
                borders[one.number] = _border(one, missing / one.size)
            missing = -excess
        return HeldOut(threshold, borders)


def _border(document: _Share, fraction: float) -> int:
    # The small number makes up for the error of the division: 900 of 1,000 characters, not 899.
    border = int(document.characters * (1 - fraction) + 1e-6)
    return min(max(border, 1), document.characters - 1)
