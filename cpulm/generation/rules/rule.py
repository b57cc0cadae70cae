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
        for rule in self._rules if rows else ():
            rule.restrict(allowed, rows)
        if not allowed.any(axis=1).all():
            for row in np.flatnonzero(~allowed.any(axis=1)).tolist():
                self.dead_ends[row] = self._reason(row, len(running), logits.size(1))
                allowed[row] = True
        return torch.where(torch.from_numpy(allowed), logits, -torch.inf)

    def _reason(self, row: int, count: int, vocab_size: int) -> str:
        """Why a text may go on with nothing: the first rule that leaves none of what those before it do."""
        allowed = np.ones((count, vocab_size), dtype=bool)
        before: list[str] = []
        for rule in self._rules:
            rule.restrict(allowed, [row])
            if not allowed[row].any():
                also = f" that {', '.join(before)} allows" if before else ""
                return f"{rule.name} allows no token{also}"
            before.append(rule.name)
        raise AssertionError("the rules allow a token now")

    def push(self, row: int, token: int) -> None:
        """Note the next token of a text."""
        for rule in self._rules:
            rule.push(row, token)
