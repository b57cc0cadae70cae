"""JSON values become a dataclass; an error names the field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from cpulm.typed_json import from_record


@dataclass
class Inner:
    x: int


@dataclass
class Outer:
    count: int
    seconds: float
    since: float
    word: str = ""
    loss: float | None = None
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    many: list[Inner] = field(default_factory=list)


GOOD: dict[str, Any] = {"count": 1, "seconds": 2, "since": 3.5}


def test_what_fits_comes_through_and_unknown_keys_do_not() -> None:
    record = {**GOOD, "loss": "nan", "kind": "b", "inner": {"x": 4}, "many": [{"x": 5}], "colour": "blue"}
    made = from_record(Outer, record)
    assert (made.count, made.seconds, made.kind, made.inner, made.many) == (1, 2, "b", Inner(4), [Inner(5)])
    assert str(made.loss) == "nan"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", True),
        ("count", "1"),
        ("count", 1.5),
        ("count", 10**400),
        ("seconds", "nan"),
        ("seconds", float("inf")),
        ("seconds", 1e300),
        ("since", -1),
        ("since", 1e12),
        ("word", 3),
        ("loss", "low"),
        ("kind", "c"),
        ("kind", ["a"]),
        ("inner", []),
        ("inner", {}),
        ("many", {"x": 1}),
        ("many", [{"x": None}]),
    ],
)
def test_what_does_not_fit_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key} cannot be"):
        from_record(Outer, {**GOOD, key: value})


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="since is missing"):
        from_record(Outer, {"count": 1, "seconds": 2})
    with pytest.raises(ValueError, match="not a record"):
        from_record(Outer, [])
