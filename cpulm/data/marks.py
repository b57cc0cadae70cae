"""Marks between the characters of a document: special tokens, and where its loss counts.

Text is never searched for special tokens, so a reader that puts one there says so beside the text.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

LOSS_OFF, LOSS_ON = "-", "+"
"""Names of marks from which on the loss does not count, or counts again, up to the document's end."""

END_OF_TEXT = "<|endoftext|>"
SPECIAL = re.compile(r"<\|[^|<>\s]+\|>")
"""The names of special tokens."""


class Mark(NamedTuple):
    """A mark: characters of its chunk before it, and the name of a special token, or a mark of the loss."""

    place: int
    name: str


def pieces_of(text: str, marks: tuple[Mark, ...]) -> list[str]:
    """The text between the marks; no piece is empty."""
    borders = [0, *(mark.place for mark in marks), len(text)]
    return [text[begin:end] for begin, end in pairwise(borders) if begin < end]


def moved(marks: tuple[Mark, ...], by: int) -> tuple[Mark, ...]:
    """The marks with ``by`` more characters before them."""
    return tuple(Mark(place + by, name) for place, name in marks)
