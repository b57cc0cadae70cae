"""Rules about the items of a list: none twice, least and most of them.

Items stand between separators, and an item may be several words, as ``x5 y4``. A token may not complete an
item that is there already, nor the text end in the middle of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cpulm.data.tokenizer import Tokenizer
from cpulm.generation.rules.rule import Logits
from cpulm.generation.rules.token_texts import token_texts

Ids = npt.NDArray[np.int64]


class ItemLimits(NamedTuple):
    """What is asked of the items of a field.

    Attributes:
        separator: between two items, and between the words of one.
        words: in one item.
    """

    separator: str = " "
    words: int = 1
    unique: bool = False
    least: int = 0
    most: int | None = None


@dataclass
class _List:
    """A list as it grows: its complete words, and what is there of the next one."""

    words: list[str] = field(default_factory=list)
    pending: str = ""


class ItemRule:
    """Limits of the items of each text.

    Args:
        name: what the user gave, for messages.
        skip: what the text begins with before the list, such as a space.
        count: the number of texts.
    """

    def __init__(self, tokenizer: Tokenizer, name: str, limits: ItemLimits, skip: str, count: int) -> None:
        self.name = name
        self._limits, self._eot_id = limits, tokenizer.eot_id
        self._texts = token_texts(tokenizer)
        self._of_words = tokenizer.kind == "word"
        self._skip = [0 if self._of_words else len(skip)] * count
        self._lists = [_List() for _ in range(count)]
        # Tokens by what they add to the word before their separator; those that hold several are never used.
        self._closing: dict[str, Ids] = {}
        self._never = np.zeros(0, dtype=np.int64)
        if not self._of_words:
            self._sort_tokens()
        self._by_text = {text: number for number, text in enumerate(self._texts) if text}

    def restrict(self, logits: Logits, rows: Sequence[int]) -> None:
        """See :class:`cpulm.generation.rules.rule.TokenRule`."""
        for row in rows:
            if self._skip[row]:
                if self._limits.least:
                    logits[row, self._eot_id] = -np.inf
            elif self._of_words:
                self._restrict_words(logits[row], self._lists[row])
            else:
                self._restrict_text(logits[row], self._lists[row])

    def push(self, row: int, token: int) -> None:
        """See :class:`cpulm.generation.rules.rule.TokenRule`."""
        one, text = self._lists[row], self._texts[token]
        if self._of_words:
            one.words.append(text.rstrip(self._limits.separator.strip() or " "))
            return
        skipped = min(self._skip[row], len(text))
        self._skip[row] -= skipped
        *complete, one.pending = (one.pending + text[skipped:]).split(self._limits.separator)
        one.words += complete

    def _restrict_words(self, logits: Logits, one: _List) -> None:
        """Every token is a whole word."""
        limits, count, begun = self._limits, *self._items(one)
        if begun or count < limits.least:
            logits[self._eot_id] = -np.inf
        if not begun and limits.most is not None and count >= limits.most:
            end = logits[self._eot_id]
            logits[:] = -np.inf
            logits[self._eot_id] = end
        if limits.unique and len(begun) == limits.words - 1:
            for word in self._used_after(one, begun):
                for text in {word, word + limits.separator.strip()} & self._by_text.keys():
                    logits[self._by_text[text]] = -np.inf

    def _restrict_text(self, logits: Logits, one: _List) -> None:
        """A token completes a word if it holds the separator."""
        limits, count, begun = self._limits, *self._items(one)
        logits[self._never] = -np.inf
        if not one.pending:
            logits[self._closing.get("", self._never)] = -np.inf
        if len(begun) < limits.words - 1:  # the item goes on after this word
            if begun or one.pending or count < limits.least:
                logits[self._eot_id] = -np.inf
            return
        is_empty = not one.pending and not begun and count == 0
        if (not one.pending or count + 1 < limits.least) and (not is_empty or limits.least):
            logits[self._eot_id] = -np.inf
        if limits.most is not None and count + 1 >= limits.most:
            for ids in self._closing.values():
                logits[ids] = -np.inf
        if limits.unique:
            for word in self._used_after(one, begun):
                if word.startswith(one.pending):
                    logits[self._closing.get(word[len(one.pending) :], self._never)] = -np.inf
                if word == one.pending:
                    logits[self._eot_id] = -np.inf

    def _items(self, one: _List) -> tuple[int, list[str]]:
        """How many items are complete, and the complete words of the next one."""
        count, rest = divmod(len(one.words), self._limits.words)
        return count, one.words[len(one.words) - rest :]

    def _used_after(self, one: _List, begun: list[str]) -> set[str]:
        """The last words of all items that began with ``begun``."""
        size = self._limits.words
        items = (one.words[at : at + size] for at in range(0, len(one.words) - size + 1, size))
        return {item[-1] for item in items if item[:-1] == begun}

    def _sort_tokens(self) -> None:
        closing: dict[str, list[int]] = {}
        never = []
        for number, text in enumerate(self._texts):
            parts = text.split(self._limits.separator)
            if len(parts) == 2:
                closing.setdefault(parts[0], []).append(number)
            elif len(parts) > 2:
                never.append(number)
        self._closing = {head: np.array(numbers) for head, numbers in closing.items()}
        self._never = np.array(never, dtype=np.int64)
