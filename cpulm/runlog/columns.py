"""Parses many lines of one kind of event into columns of numbers, without an object per event."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from cpulm import typed_json
from cpulm.events import Event, line_start

Floats = npt.NDArray[np.float64]


class Columns:
    """Parses lines of one kind of event into rows of numbers; all its fields must be numbers.

    Args:
        kind: the class of the event, as :func:`cpulm.events.to_json` writes it.
    """

    def __init__(self, kind: type[Event]) -> None:
        hints = typing.get_type_hints(kind, include_extras=True)
        self.names = tuple(spec.name for spec in dataclasses.fields(kind))
        """The fields, in the order of the columns."""
        self.start = line_start(kind)
        """How each such line begins."""
        # An earlier version did not write the fields that have a default.
        defaults = {spec.name for spec in dataclasses.fields(kind) if spec.default is not dataclasses.MISSING}
        fields = [
            (name, hints[name], math.nan) if name in defaults else (name, hints[name]) for name in self.names
        ]
        # msgspec creates a struct in half the time of a dataclass.
        self._row = msgspec.defstruct(
            kind.__name__, fields, tag_field="event", tag=kind.kind, kw_only=True, gc=False
        )
        self._decoder = msgspec.json.Decoder(self._row)
        self._has_null = any(type(None) in typing.get_args(hints[name]) for name in self.names)

    def rows(self, lines: Sequence[bytes]) -> Floats:
        """Return one row per line, float64 [lines, fields]; the row of a damaged line is all NaN.

        A field that is null, NaN or infinite is NaN. Each line must begin with :attr:`start`, or be empty.
        """
        try:
            rows = self._decoder.decode_lines(b"".join(lines))
        except (ValueError, RecursionError):
            rows = []
        if len(rows) != len(lines):
            rows = [self._decode(line) for line in lines]
        values: Iterable[Any] = chain.from_iterable(map(msgspec.structs.astuple, rows))
        if self._has_null:
            values = (math.nan if value is None else value for value in values)
        table = np.fromiter(values, dtype=np.float64, count=len(lines) * len(self.names))
        table[~np.isfinite(table)] = np.nan
        return table.reshape(len(lines), len(self.names))

    def _decode(self, line: bytes) -> msgspec.Struct:
        try:
            return typed_json.decode(line, self._decoder)
        except ValueError:
            return self._row(**dict.fromkeys(self.names, math.nan))
