"""Lines as columns: the same numbers as from a JSON parser, for any contents."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpulm.events import MachineSampled, StepDone, to_json
from cpulm.runlog.columns import Columns

STEPS = Columns(StepDone)
NUMBER = st.floats(min_value=0, max_value=1e18, allow_nan=False)


def line(**changes: float) -> bytes:
    values = dict.fromkeys(STEPS.names, 0.5) | {"step": 3, "tokens": 6144, "generation": 2} | changes
    return (to_json(StepDone(**values)) + "\n").encode()  # type: ignore[arg-type]


@given(st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=1, max_size=20))
def test_numbers_are_those_of_a_json_parser(values: list[tuple[float, float, float]]) -> None:
    lines = [line(loss=a - b, lr=1 / (1 + b), data_seconds=c) for a, b, c in values]
    parsed = [[json.loads(one)[name] for name in STEPS.names] for one in lines]
    assert STEPS.rows(lines).tolist() == parsed


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"event":"step","time":17000\n',
        b'{"event":"step","time":1,"step":2,"loss":0.5,"event":"step"}\n',
        line().replace(b"0.5", b"0.5.5", 1),
        line().replace(b'"lr":0.5', b'"lr":"often"'),
        line().replace(b'"step":3', b'"step":true'),
        line()[:-40] + line(),
        b"\n",
    ],
)
def test_a_damaged_line_is_nan_and_leaves_its_neighbours_alone(damaged: bytes) -> None:
    rows = STEPS.rows([line(), damaged, line(step=4)])
    assert np.isnan(rows[1]).all()
    assert rows[[0, 2], STEPS.names.index("step")].tolist() == [3, 4]


def test_keys_in_another_order_and_unknown_ones_are_read_all_the_same() -> None:
    record = json.loads(line())
    other = json.dumps({"event": "step", "new": 1, **dict(reversed(record.items()))}).encode() + b"\n"
    assert STEPS.rows([line(), other])[1].tolist() == STEPS.rows([line()])[0].tolist()


def test_a_line_of_before_a_field_was_added_has_nan_for_it() -> None:
    old = [line(step=step).replace(b',"muon_lr":0.5', b"") for step in (1, 2)]
    rows = STEPS.rows(old)
    assert rows[:, STEPS.names.index("step")].tolist() == [1, 2]
    assert np.isnan(rows[:, STEPS.names.index("muon_lr")]).all()
    assert STEPS.rows([*old, line(step=3)])[:, STEPS.names.index("step")].tolist() == [1, 2, 3]


def test_what_is_not_known_or_not_finite_is_nan() -> None:
    assert math.isnan(STEPS.rows([line(loss=math.inf)])[0, STEPS.names.index("loss")])
    machine = Columns(MachineSampled)
    event = MachineSampled(
        time=1.0,
        cpu_percent=1.0,
        process_cpu_percent=1.0,
        cpu_mhz=None,
        cpu_temperature=61.0,
        process_bytes=1,
        memory_used_bytes=1,
        memory_total_bytes=1,
    )
    row = dict(zip(machine.names, machine.rows([(to_json(event) + "\n").encode()])[0], strict=True))
    assert math.isnan(row["cpu_mhz"])
    assert row["cpu_temperature"] == 61.0
