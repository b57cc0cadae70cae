"""Events are immutable, and every one survives the conversion to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpulm.events import KINDS, EndReason, Event, Notice, StepDone, from_json, line_start, to_json

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "Count": st.integers(0, 2**53),
    "Loss": st.floats().map(lambda value: float(f"{value:.7g}")),
    "Number": st.floats(-(2.0**60), 2.0**60).map(lambda value: float(f"{value:.7g}")),
    "str": st.text(),
    "bool": st.booleans(),
    "EndReason": st.sampled_from(typing.get_args(EndReason)),
    "tuple[str, ...]": st.lists(st.text(), max_size=3).map(tuple),
    "tuple[Number, ...]": st.lists(
        st.floats(-(2.0**60), 2.0**60).map(lambda value: float(f"{value:.7g}")), max_size=3
    ).map(tuple),
    "tuple[Count, ...]": st.lists(st.integers(0, 2**53), max_size=3).map(tuple),
}


def strategy(kind: str) -> st.SearchStrategy[Event]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for spec in dataclasses.fields(KINDS[kind]):
        name = str(spec.type).removesuffix(" | None")
        if name == "Moment":
            continue
        fields[spec.name] = VALUES[name] if name == spec.type else st.none() | VALUES[name]
    fields["time"] = st.integers(0, 2**41).map(lambda milliseconds: milliseconds / 1000)
    return st.builds(KINDS[kind], **fields)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_event_survives_json(kind: str) -> None:
    @given(strategy(kind))
    def survives(event: Event) -> None:
        line = to_json(event)
        assert "\n" not in line
        assert repr(from_json(line)) == repr(event)  # NaN is not equal to itself
        assert line.encode("utf-8", "replace").startswith(line_start(type(event)))

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
        '{"event":"notice","level":"info","message":"at what time?"}',
        "[" * 100_000,
        '{"event":"notice","time":1,"level":"info","message":' + "[" * 100_000,
        '{"event":"notice","time":1,"level":"info","message":"hello","new":' + '{"a":' * 100_000,
    ],
)
def test_a_line_that_is_not_an_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own errors are ValueErrors with texts of theirs
        from_json(line)


IMPOSSIBLE: dict[str, list[str]] = {
    "Count": ["true", "1.0", '"1"', "NaN", "9" * 30, "9" * 5000, str(2**63)],
    "Number": ["true", '"1"', '"nan"', "NaN", "Infinity", "1e300", "1e999", "9" * 400],
    "Moment": ["true", '"1"', '"nan"', "NaN", "-1", "1e12", "9" * 400],
    "Loss": ["true", '"1"', '"low"', "1e999", "9" * 400],
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_number_of_an_event_may_be_an_impossible_one(kind: str) -> None:
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(KINDS[kind]):
        name = str(spec.type)
        words: dict[str, Any] = {"str": "a", "str | None": "a", "bool": False, "EndReason": "horizon"}
        values[spec.name] = [] if "tuple" in name else words.get(name, 1)
        assert not re.search(r"\b(int|float)\b", name), f"{kind}.{spec.name} has no bounds"
    assert from_json(json.dumps({"event": kind, **values})).kind == kind
    for spec in dataclasses.fields(KINDS[kind]):
        for value in IMPOSSIBLE.get(str(spec.type).removesuffix(" | None"), []):
            line = json.dumps({"event": kind, **values, spec.name: "HERE"}).replace('"HERE"', value)
            with pytest.raises(ValueError):  # noqa: PT011
                from_json(line)


def test_a_non_finite_loss_may_come_from_another_program() -> None:
    line = to_json(a_step()).replace('"loss":1', '"loss":NaN')
    back = from_json(line)
    assert isinstance(back, StepDone)
    assert math.isnan(back.loss)


def test_bytes_that_are_not_utf_8_do_not_cost_the_line() -> None:
    line = to_json(Notice(level="info", message="caf?")).encode().replace(b"?", b"\xe9")
    event = from_json(line)
    assert isinstance(event, Notice)
    assert event.message == "caf\ufffd"
