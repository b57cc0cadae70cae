"""What a rule is, and several rules together.

Before each token every rule sets the logits of what it does not allow to -inf, in place and text by text; the
model chooses among the rest. A text that could go on with nothing ends there, and the reason is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Logits: TypeAlias = npt.NDArray[np.float32]
"""[B, V] of the next token of each text."""


class TokenRule(Protocol):
    """A rule over several texts that grow together, each from the token after the prompt."""

    name: str

    def restrict(self, logits: Logits, rows: Sequence[int]) -> None:
        """Set the logits of what the texts ``rows`` may not go on with to -inf.

        Called once before each token. What becomes of the logits of other rows does not matter.
        """

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
        """Set logits [B, V] of what the running texts may not go on with to -inf, in place where possible.

        Texts that could go on with nothing are noted in ``dead_ends``. The input
        may be overwritten, and the rows of texts that have ended are undefined.
        """
        rows = [row for row, runs in enumerate(running) if runs]
        logits = logits.float().contiguous()  # the rows of a first step are one in memory
        array = logits.numpy()
        for rule in self._rules if rows else ():
            rule.restrict(array, rows)
        largest: list[float] = array.max(axis=1).tolist()
        if -math.inf in largest:
            for row in [row for row, most in enumerate(largest) if most == -math.inf]:
                if running[row]:
                    reason = self._reason(row, len(running), array.shape[1])
                    if reason is None:
                        continue
                    self.dead_ends[row] = reason
                array[row] = 0
        return logits

    def _reason(self, row: int, count: int, vocab_size: int) -> str | None:
        """Why a text may go on with nothing: the first rule that leaves none of what those before it do.

        None if the rules leave some: then the model's logits are not finite.
        """
        logits = np.zeros((count, vocab_size), dtype=np.float32)
        before: list[str] = []
        for rule in self._rules:
            rule.restrict(logits, [row])
            if logits[row].max() == -math.inf:
                also = f" that {', '.join(before)} allows" if before else ""
                return f"{rule.name} allows no token{also}"
            before.append(rule.name)
        return None

    def push(self, row: int, token: int) -> None:
        """Note the next token of a text."""
        for rule in self._rules:
            rule.push(row, token)
