"""Borders in UTF-8 text that no token of a byte-level BPE vocabulary that splits as Qwen2's can span.

They are found by vector operations: each byte has a class, and a table says for each pair of neighbouring
classes whether the splitting expression always cuts there. A border must be one in the whole text, and both
of its sides must be split alone as they are within the whole. Where a table cannot know, it does not cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]
Ints: TypeAlias = npt.NDArray[np.int64]

END_MARK = 0xFF
"""Marks the end of a document: a byte that no UTF-8 text holds."""

# Classes of bytes. OTHER is every byte whose Unicode class depends on its neighbours, and the controls.
_LETTER, _DIGIT, _SIGN, _QUOTE, _SPACE, _TAB, _NEWLINE, _OTHER, _END = range(9)
_VISIBLE = (_LETTER, _DIGIT, _SIGN, _QUOTE)
_SIGNS = (_SIGN, _QUOTE)
_BLANKS = (_SPACE, _TAB)
_NEVER, _ALWAYS, _AFTER_OTHER, _BEFORE_WORD, _BEFORE_LETTER, _AFTER_NEWLINE = range(6)


def _byte_classes() -> bytes:
    classes = bytearray([_OTHER]) * 256
    for byte in range(0x21, 0x7F):
        letter = chr(byte)
        classes[byte] = _LETTER if letter.isalpha() else _DIGIT if letter.isdigit() else _SIGN
    classes[ord("'")] = _QUOTE
    classes[ord(" ")] = _SPACE
    classes[ord("\t")] = _TAB
    classes[ord("\n")] = classes[ord("\r")] = _NEWLINE
    classes[END_MARK] = _END
    return bytes(classes)


def _pair_rules(rule: Callable[[int, int], int]) -> bytes:
    """For each pair of neighbouring classes, indexed by 16 * left + right, whether to cut between."""
    rules = bytearray(256)
    for left in range(_END + 1):
        for right in range(_END + 1):
            rules[16 * left + right] = _ALWAYS if _END in (left, right) else rule(left, right)
    return bytes(rules)


def _rule(left: int, right: int) -> int:
    if right == _NEWLINE:
        # Signs take the line ends after them, and blanks those among them.
        return _ALWAYS if left in (_LETTER, _DIGIT) else _NEVER
    if right in _BLANKS:
        if left in _VISIBLE:
            return _ALWAYS
        # A letter takes any blank before it, a sign only a space.
        return {_OTHER: _AFTER_OTHER, _NEWLINE: _AFTER_NEWLINE}.get(left, _BEFORE_WORD)
    if left == _DIGIT:  # each digit is a token
        return _ALWAYS
    if left == _NEWLINE:
        return _NEVER if right == _OTHER else _ALWAYS
    if left not in _VISIBLE or right not in _VISIBLE:
        return _NEVER
    if right == _DIGIT:
        return _ALWAYS
    if left == _LETTER:
        return _NEVER if right == _LETTER else _ALWAYS
    return _BEFORE_LETTER if right == _LETTER else _NEVER


_CLASSES = _byte_classes()
_RULES = _pair_rules(_rule)


def piece_starts(data: bytes) -> Ints:
    """Return where the pieces of UTF-8 ``data`` begin; the first is 0, and no token spans two pieces."""
    classes = np.frombuffer(data.translate(_CLASSES), dtype=np.uint8)
    pairs: Bytes = classes[:-1] << np.uint8(4) | classes[1:]
    rules = np.frombuffer(pairs.tobytes().translate(_RULES), dtype=np.uint8)
    cut = rules == _ALWAYS
    at = np.flatnonzero(rules == _BEFORE_WORD)
    at = at[at + 2 < len(data)]
    cut[at] = classes[at + 2] <= _QUOTE
    at = np.flatnonzero(rules == _AFTER_OTHER)
    if len(at):
        cut[at] = _surely_visible(np.frombuffer(data, dtype=np.uint8), at)
    # A lone sign belongs to the letters behind it, unless there is a space before it.
    at = np.flatnonzero(rules == _BEFORE_LETTER)
    before = classes[np.maximum(at - 1, 0)]
    cut[at] = (at > 0) & (before >= _SIGN) & (before <= _SPACE)
    at = np.flatnonzero(rules == _AFTER_NEWLINE)
    if len(at):
        # A line end belongs to the blanks behind it if another line end follows them.
        solid = np.flatnonzero((classes != _SPACE) & (classes != _TAB))
        following = np.searchsorted(solid, at, side="right")
        ends = np.append(classes[solid], _END)[following]
        cut[at] = (ends <= _QUOTE) | (ends == _END)
    starts: Ints = np.flatnonzero(cut)
    starts += 1
    return np.concatenate([np.zeros(1, dtype=np.int64), starts])


def _surely_visible(data: Bytes, at: Ints) -> npt.NDArray[np.bool_]:
    """Whether the characters that end at ``at`` cannot be white space beyond ASCII.

    All such white space is in U+0080-00BF and in the three-byte characters with lead bytes E1, E2 and E3.
    """
    second = data[np.maximum(at - 1, 0)]
    third = data[np.maximum(at - 2, 0)]
    visible: npt.NDArray[np.bool_] = (data[at] >= 0x80) & (second != 0xC2) & ((third < 0xE1) | (third > 0xE3))
    return visible
