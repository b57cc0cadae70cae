"""The measurements that a prediction is compared with."""

from __future__ import annotations

import dataclasses

import pytest
from recorded_runs import validated
from small_events import run_finished, step_done

from benchmarks.prediction import held_against
from cpulm.estimate.learning_law import Expectation


@pytest.mark.parametrize(("best", "within"), [(2.1, True), (1.8, False), (2.3, False)])
def test_the_best_validation_is_held_against_the_span_and_all_tokens_count(best: float, within: bool) -> None:
    events = [
        step_done(1, tokens=2048),
        dataclasses.replace(validated(1, 1.0, 3.05), bits_per_byte=best),
        step_done(2, tokens=4096),
        dataclasses.replace(validated(2, 2.0, 3.2), bits_per_byte=2.5),
        run_finished(2, "horizon"),
    ]
    found = held_against(Expectation(2.0, 1.9, 2.2), events)
    assert (found["bits_per_byte"], found["last_bits_per_byte"]) == (best, 2.5)
    assert (found["within"], found["tokens_trained"]) == (within, 4096)
