"""What a rule is, and several rules together.

Before each token every rule takes away what it does not allow, row by row; the model chooses among the rest.
A text that could go on with nothing ends there, and the reason is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Allowed: TypeAlias = npt.NDArray[np.bool_]
"""[B, V]: which tokens may come next in each text."""


class TokenRule(Protocol):
    """A rule over several texts that grow together, each from the token after the prompt."""

    name: str

    def restrict(self, allowed: Allowed, rows: Sequence[int]) -> None:
        """Clear what the texts ``rows`` may not go on with. Called once before each token."""

    def push(self, row: int, token: int) -> None:
        """Note the next token of a text."""


class RuleSet:
    """Rules that hold together.

    Attributes:
        dead_ends: by the text's number, why it could not go on.
    """

    def __init__(self, rules: Sequence[TokenRule]) -> None:
        self.dead_ends: dict[int, str] = {}
        self._rules = tuple(rules)

    def apply(self, logits: Tensor, running: Sequence[bool]) -> Tensor:
        """Set logits [B, V] of what the running texts may not go on with to -inf.

        Texts that could go on with nothing are noted in ``dead_ends``, and their logits stay.
        """
        rows = [row for row, runs in enumerate(running) if runs]
        allowed = np.ones(tuple(logits.shape), dtype=bool)
        emptied: dict[int, str] = {}
        for rule in self._rules if rows else ():
            rule.restrict(allowed, rows)
            left: npt.NDArray[np.bool_] = np.any(allowed, axis=1)
            for row in rows:
                if not left[row]:
                    emptied.setdefault(row, rule.name)
        for row, name in emptied.items():
            others = [rule.name for rule in self._rules if rule.name != name]
            also = f" that {', '.join(others)} allow" if others else ""
            self.dead_ends[row] = f"{name} allows no token{also}"
            allowed[row] = True
        return logits.masked_fill(torch.from_numpy(~allowed), -torch.inf)

    def push(self, row: int, token: int) -> None:
        """Note the next token of a text."""
        for rule in self._rules:
            rule.push(row, token)
