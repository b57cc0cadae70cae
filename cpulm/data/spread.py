"""Chooses a share of the parts of a file, spread evenly over it."""

from __future__ import annotations

from typing import NamedTuple

from cpulm.data.holdout import name_hash


class EvenShare(NamedTuple):
    """A share, and where in it the file begins, in [0, 1).

    Of any n parts after one another it has the share of n, rounded up or down.
    """

    share: float
    begins: float

    @classmethod
    def of(cls, name: str, share: float) -> EvenShare:
        """That of the file ``name``: files differ in the part they begin with."""
        return cls(share, name_hash(f"share of {name}"))

    def has(self, number: int) -> bool:
        """Whether a part is chosen, by its number in the file."""
        return self.before(number + 1) > self.before(number)

    def before(self, number: int) -> int:
        """How many parts are chosen before one."""
        return int(number * self.share + self.begins)
