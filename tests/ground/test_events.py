"""Events are frozen, and every one survives the way to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpulm.events import KINDS, Event, Notice, StepDone, from_json, to_json

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(0, 2**53),
    "float": st.floats(-(2.0**60), 2.0**60).map(lambda value: float(f"{value:.7g}")),
    "str": st.text(),
    "bool": st.booleans(),
    "tuple[str, ...]": st.lists(st.text(), max_size=3).map(tuple),
    "tuple[float, ...]": st.lists(
        st.floats(-(2.0**60), 2.0**60).map(lambda value: float(f"{value:.7g}")), max_size=3
    ).map(tuple),
    "tuple[int, ...]": st.lists(st.integers(0, 2**53), max_size=3).map(tuple),
}


def strategy(kind: str) -> st.SearchStrategy[Event]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for spec in dataclasses.fields(KINDS[kind]):
        name = str(spec.type).removesuffix(" | None")
        fields[spec.name] = VALUES[name] if name == spec.type else st.none() | VALUES[name]
    fields["time"] = st.integers(0, 2**41).map(lambda milliseconds: milliseconds / 1000)
    return st.builds(KINDS[kind], **fields)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_event_survives_json(kind: str) -> None:
    @given(strategy(kind))
    def survives(event: Event) -> None:
        line = to_json(event)
        assert "\n" not in line
        assert from_json(line) == event

    survives()


def a_step(**changes: Any) -> StepDone:
    values: dict[str, Any] = {spec.name: 1 for spec in dataclasses.fields(StepDone)}
    return StepDone(**{**values, **changes})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_non_finite_numbers_are_valid_json_and_come_back(value: float) -> None:
    line = to_json(a_step(loss=value))
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = from_json(line)
    assert isinstance(back, StepDone)
    assert str(back.loss) == str(value)


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        a_step().loss = 2.0  # type: ignore[misc]


def test_keys_of_a_newer_version_are_ignored() -> None:
    record = {**json.loads(to_json(Notice(level="info", message="hello"))), "colour": "blue"}
    event = from_json(json.dumps(record))
    assert isinstance(event, Notice)
    assert event.message == "hello"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "3",
        '{"event":"party"}',
        '{"event":"step","step":1}',
        '{"event":3}',
        '{"event":"notice","time":1,"level":"info","message":[]}',
        '{"event":"notice","time":"1","level":"info","message":"hello"}',
        '{"event":"notice","time":1e300,"level":"info","message":"hello"}',
        '{"event":"progress","time":1,"stage":"a","done":Infinity,"total":null,"unit":"b"}',
        '{"event":"progress","time":1,"stage":"a","done":true,"total":null,"unit":"b"}',
    ],
)
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own errors are ValueErrors with texts of theirs
        from_json(line)
