"""Parses the header of a GGUF file: metadata and where its tensors are. Every length is checked.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpulm.errors import DataError
from cpulm.regular_file import open_regular

_VERSIONS = (2, 3)
_NUMBERS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
"""The types of numbers in metadata, as numpy calls them."""
_BOOL, _STRING, _ARRAY = 7, 8, 9
_COUNT, _LENGTH = 4, 10
_MOST_DIMENSIONS = 4
_MOST_HEADER_BYTES = 1 << 28


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor is: its type's number, its shape [outputs, inputs], and its first byte in the file."""

    kind: int
    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself."""

    values: dict[str, Any]
    tensors: dict[str, GgufTensor]
    size_bytes: int


def read_header(path: Path) -> GgufHeader:
    """Read the header of the file at ``path``.

    Raises:
        DataError: if the file cannot be read, or is not a GGUF file.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MOST_HEADER_BYTES)
            size = file.seek(0, 2)
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}") from error
    if content[:4] != b"GGUF":
        raise DataError("it is not a GGUF file")
    try:
        return _Parser(content).header(size)
    except ValueError as error:
        raise DataError(f"its header is damaged: {error}", "is it complete? Download it again") from error


class _Parser:
    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 4

    def header(self, size: int) -> GgufHeader:
        version = self._number(_COUNT)
        if version not in _VERSIONS:
            raise ValueError(f"version {version}")
        tensor_count, value_count = self._number(_LENGTH), self._number(_LENGTH)
        values = {}
        for _ in range(self._count(value_count, 13)):
            name = self._text().decode()
            values[name] = self._value(self._number(_COUNT))
        described = {}
        for _ in range(self._count(tensor_count, 24)):
            name = self._text().decode()
            dimensions = self._number(_COUNT)
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"{name} has {dimensions} dimensions")
            shape = tuple(reversed([self._number(_LENGTH) for _ in range(dimensions)]))
            described[name] = (self._number(_COUNT), shape, self._number(_LENGTH))
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError("general.alignment")
        begin = -(-self._at // alignment) * alignment
        tensors = {
            name: GgufTensor(kind, shape, begin + offset) for name, (kind, shape, offset) in described.items()
        }
        return GgufHeader(values, tensors, size)

    def _value(self, kind: int, *, inside: bool = False) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _BOOL:
            return bool(self._number(0))
        if kind == _ARRAY and not inside:
            return self._array(self._number(_COUNT), self._number(_LENGTH))
        return self._number(kind)

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind not in _NUMBERS:
            return [self._value(kind, inside=True) for _ in range(self._count(count, 1))]
        return self._numbers(kind, count)

    def _count(self, count: int, least_bytes: int) -> int:
        """``count`` things that take at least so many bytes each."""
        if count * least_bytes > len(self._content) - self._at:
            raise ValueError(f"{count:,} entries in {len(self._content):,} bytes")
        return count

    def _number(self, kind: int) -> Any:
        return self._numbers(kind, 1)[0]

    def _numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in _NUMBERS:
            raise ValueError(f"a value of type {kind}")
        dtype = np.dtype(_NUMBERS[kind])
        numbers: list[Any] = np.frombuffer(self._take(count * dtype.itemsize), dtype=dtype).tolist()
        return numbers

    def _text(self) -> bytes:
        return self._take(self._number(_LENGTH))

    def _take(self, count: int) -> bytes:
        taken = self._content[self._at : self._at + count]
        if len(taken) != count:
            raise ValueError("it ends too early")
        self._at += count
        return taken
