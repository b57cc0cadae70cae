"""Converts JSON from a file to a given type, and checks the type and range of every value.

A file may come from another version or another program, or may be damaged. The code that uses the result can
rely on its types.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")
_Check = Callable[[Any], Any]

LARGEST = 2.0**63
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80
_MOST_SHOWN = 80
LATEST = 32_503_680_000.0
"""The year 3000 in seconds since the epoch: some systems cannot convert later times."""
_MOMENTS = {"time", "since", "began", "ended", "waiting_until"}
_ANY_FLOAT = {"loss", "grad_norm", "perplexity", "bits_per_byte", "best_loss", "best_bits_per_byte"}
"""Fields that may be infinite or NaN, as the losses of a diverging run."""


def from_record(cls: Callable[..., _T], record: Any) -> _T:
    """Build the dataclass ``cls`` from JSON values; unknown keys are ignored.

    Raises:
        ValueError: names the first field that is missing or invalid.
    """
    if not isinstance(record, Mapping):
        raise ValueError("not a record")
    values = {}
    for name, check, required in _fields(cls):
        if name in record:
            try:
                values[name] = check(record[name])
            except (ValueError, TypeError, OverflowError, RecursionError):
                raise ValueError(f"{name} cannot be {shown(record[name])}") from None
        elif required:
            raise ValueError(f"{name} is missing")
    return cls(**values)


def shown(value: object) -> str:
    """``repr(value)``, cut short. Of nested values only the outer ones are visited: nine YAML anchors, or
    lists that hold one list many times, would fill the memory."""
    text = _SHORT.repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of any kind.

    Raises:
        ValueError: if it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def decode(line: str | bytes, decoder: msgspec.json.Decoder[_T]) -> _T:
    """Decode a line of JSON.

    Raises:
        ValueError: if the line is damaged, nested too deeply, or not of the type of ``decoder``.
    """
    try:
        return decoder.decode(line)
    except msgspec.ValidationError:
        raise
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        return _decode_leniently(line, decoder)


def _decode_leniently(line: str | bytes, decoder: msgspec.json.Decoder[_T]) -> _T:
    """Decode with the standard library, which accepts NaN, a lone surrogate, and bytes that are not UTF-8."""
    text = line if isinstance(line, str) else line.decode("utf-8", "replace")
    return msgspec.convert(parse_json(text), decoder.type)


@lru_cache(maxsize=64)
def _fields(cls: Hashable) -> list[tuple[str, _Check, bool]]:
    """Return name, converter and whether it is required, for each field."""
    hints = typing.get_type_hints(cls)
    fields = []
    for spec in dataclasses.fields(typing.cast(Any, cls)):
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        fields.append((spec.name, _converter(hints[spec.name], spec.name), required))
    return fields


def _converter(kind: Any, name: str) -> _Check:
    """Return a function that converts a value to type ``kind``, or raises."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [part for part in parts if part is not type(None)]
        check = _converter(inner, name)
        return lambda value: None if value is None else check(value)
    if origin in (list, tuple):
        check = _converter(parts[0], name)
        return lambda value: origin(map(check, _instance(list, value)))
    if origin is dict:
        inside = _converter(parts[1], name)
        return lambda value: {_instance(str, key): inside(one) for key, one in _instance(dict, value).items()}
    if origin is typing.Literal:
        return lambda value: _one_of(parts, value)
    if dataclasses.is_dataclass(kind):
        return lambda value: from_record(typing.cast(type, kind), value)
    if kind is float:
        return lambda value: _number(value, name)
    if kind is int:
        return _integer
    return lambda value: _instance(kind, value)


def _instance(kind: Any, value: Any) -> Any:
    if isinstance(value, tuple) and kind is list:
        return value
    if not isinstance(value, kind):
        raise TypeError
    return value


def _one_of(words: tuple[str, ...], value: Any) -> Any:
    if not isinstance(value, str) or value not in words:
        raise ValueError
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST:
        raise TypeError
    return value


def _number(value: Any, name: str) -> float | int:
    if isinstance(value, str) and name in _ANY_FLOAT and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    if name in _MOMENTS and not 0 <= value <= LATEST:
        raise ValueError
    if name not in _ANY_FLOAT and not abs(value) <= LARGEST:
        raise ValueError
    if isinstance(value, int) and not math.isfinite(float(value)):
        raise ValueError
    return value
