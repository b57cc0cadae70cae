"""Counts how often each value of a template's columns was seen: the conditions that a model knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cpulm.data.records.template import Template

MOST_VALUES = 1000
"""A column with more different values is text, not a condition, and is not counted."""


class SeenValues:
    """The values of each column as they stand in the text, in bounded memory."""

    def __init__(self, template: Template | None) -> None:
        columns = template.columns if template is not None else []
        # A column that stands in several places is counted where it stands first.
        self._counted = [(place, name, Counter[str]()) for place, name in enumerate(columns)]
        self._counted = [one for one in self._counted if columns.index(one[1]) == one[0]]

    def add(self, values: Sequence[str]) -> None:
        """Count the values of one document, in the order of the template."""
        if not values:
            return
        for place, _, counts in self._counted:
            counts[values[place]] += 1
        self._keep_conditions()

    def add_block(self, columns: Sequence[Sequence[str]]) -> None:
        """Count the values of many documents, column by column."""
        if not columns:
            return
        for place, _, counts in self._counted:
            counts.update(columns[place])
        self._keep_conditions()

    def _keep_conditions(self) -> None:
        if any(len(counts) > MOST_VALUES for _, _, counts in self._counted):
            self._counted = [one for one in self._counted if len(one[2]) <= MOST_VALUES]

    def state(self) -> list[Any]:
        """All that was counted, as JSON holds it."""
        return self._counted

    def restore(self, state: list[Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self._counted = [(place, name, Counter(counts)) for place, name, counts in state]

    def counts(self) -> dict[str, dict[str, int]]:
        """How often each value was seen, by column, the most frequent first."""
        return {name: dict(counts.most_common()) for _, name, counts in self._counted}
