"""The measurements that a prediction is compared with."""

from __future__ import annotations

import pytest
from recorded_runs import validated
from small_events import run_finished, step_done

from benchmarks.prediction import held_against

EXPECTED = {"expected_loss": 3.0, "expected_low": 2.9, "expected_high": 3.2}


@pytest.mark.parametrize(("last", "within"), [(3.1, True), (2.8, False), (3.3, False)])
def test_the_last_validation_is_held_against_the_span_and_all_tokens_count(last: float, within: bool) -> None:
    events = [
        step_done(1, tokens=2048),
        validated(1, 1.0, 3.05),
        step_done(2, tokens=4096),
        validated(2, 2.0, last),
        run_finished(2, "horizon"),
    ]
    found = held_against(EXPECTED, events)
    assert (found["loss"], found["within"], found["tokens_trained"]) == (last, within, 4096)
    assert found["expected_loss"] == 3.0
