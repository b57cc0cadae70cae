"""Rows of CSV that nothing is wrong with, many at once; all others are left to ``csv.reader``.

``csv.reader`` takes three times as long where cells are long: it looks at each character, and needs lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_LINE_END, _RETURN, _QUOTE = b'\n\r"'
_FIRST_LEAD = -64
"""Bytes that go on with a character are below it, as signed numbers."""

_Places = npt.NDArray[np.int64]
_Bytes = npt.NDArray[np.uint8]


class PlainRows(NamedTuple):
    """Whole rows at the beginning of some lines.

    Attributes:
        cells: some of the columns.
        lines: the lines before each row.
        end: bytes of all rows.
    """

    cells: list[list[str]]
    lines: list[int]
    end: int


def plain_rows(
    data: bytes, width: int, columns: Sequence[int], delimiter: str, largest: int
) -> PlainRows | None:
    """The cells of some columns in the whole rows that ``data``, in UTF-8, begins with.

    They are what ``csv.reader(strict=True)`` gives. None if it would refuse one of these rows, if one has no
    cell or not ``width`` of them, a cell over ``largest`` bytes or a NUL, or if there is no whole row.
    """
    array = np.frombuffer(data, dtype=np.uint8)
    places = np.flatnonzero((array == _QUOTE) | (array == ord(delimiter)) | (array == _LINE_END))
    kinds = array[places]
    quotes = kinds == _QUOTE
    is_border = ~(quotes | np.logical_xor.accumulate(quotes))
    row_ends = np.flatnonzero(kinds[is_border] == _LINE_END)
    if not len(row_ends) or not np.array_equal(row_ends, np.arange(width - 1, width * len(row_ends), width)):
        return None
    borders = places[is_border][: row_ends[-1] + 1]
    end = int(borders[-1]) + 1
    starts = np.concatenate([np.zeros(1, dtype=np.int64), borders[:-1] + 1]).reshape(-1, width)
    ends = borders.reshape(-1, width).copy()
    ends[:, -1] -= (array[ends[:, -1] - 1] == _RETURN) & (ends[:, -1] > starts[:, -1])
    inner = places[quotes]
    inner = inner[: np.searchsorted(inner, end)]
    # Of two quotes within a cell the first one closes, and the second one opens.
    second = inner[2::2] == inner[1:-1:2] + 1
    opens = np.concatenate([inner[:1], inner[2::2][~second]])
    closes = np.concatenate([inner[1:-1:2][~second], inner[-1:]])
    if (
        b"\0" in data
        or int((ends - starts).max()) > largest
        or (width == 1 and (starts == ends).any())
        # A quote that opens is not in quotes, so neither is the delimiter or line end before it.
        or not _are_outside(array[opens[opens > 0] - 1], delimiter)
        or not _are_outside(array[closes + 1], delimiter)
        or _has_return(array[:end], inner, ends[:, -1])
    ):
        return None
    lines = np.searchsorted(places[kinds == _LINE_END], starts[:, 0]).tolist()
    cells = _texts(data[:end], array, inner[2::2][second], starts[:, columns], ends[:, columns])
    return None if cells is None else PlainRows(cells, lines, end)


def _are_outside(found: _Bytes, delimiter: str) -> bool:
    """Whether all of these bytes are such as stand between cells."""
    return bool(((found == ord(delimiter)) | (found == _LINE_END) | (found == _RETURN)).all())


def _has_return(array: _Bytes, quotes: _Places, row_ends: _Places) -> bool:
    """Whether a carriage return is neither in quotes nor before a line end."""
    in_line_ends = np.count_nonzero(array[row_ends] == _RETURN)
    is_return = array == _RETURN
    if np.count_nonzero(is_return) == in_line_ends:
        return False
    outside = np.searchsorted(quotes, np.flatnonzero(is_return)) % 2 == 0
    return bool(np.count_nonzero(outside) != in_line_ends)


def _texts(
    data: bytes, array: _Bytes, left_out: _Places, starts: _Places, ends: _Places
) -> list[list[str]] | None:
    """What stands in cells, int64 [rows, columns], without quotes around it and what is ``left_out``.

    None if it is not UTF-8.
    """
    quoted = array[starts] == _QUOTE
    starts, ends = starts + quoted, ends - quoted
    if len(left_out):
        starts, ends = starts - np.searchsorted(left_out, starts), ends - np.searchsorted(left_out, ends)
        kept = np.ones(len(data), dtype=bool)
        kept[left_out] = False
        data = array[: len(data)][kept].tobytes()  # faster than to replace quotes in each cell
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    if len(text) < len(data):  # places in bytes are not those in characters
        before = np.cumsum(np.frombuffer(data, dtype=np.int8) < _FIRST_LEAD)
        before = np.concatenate([np.zeros(1, dtype=np.int64), before])
        starts, ends = starts - before[starts], ends - before[ends]
    return [
        [text[start:end] for start, end in zip(*column, strict=True)]
        for column in zip(starts.T.tolist(), ends.T.tolist(), strict=True)
    ]
