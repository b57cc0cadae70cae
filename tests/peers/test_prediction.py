"""What a forecast is held against."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.prediction import held_against

EXPECTED = {"expected_loss": 3.0, "expected_low": 2.9, "expected_high": 3.2}


@pytest.mark.parametrize(("last", "within"), [(3.1, True), (2.8, False), (3.3, False)])
def test_the_last_validation_is_held_against_the_span_and_all_tokens_count(last: float, within: bool) -> None:
    events: list[dict[str, Any]] = [
        {"event": "step", "tokens": 2048},
        {"event": "validated", "loss": 3.05},
        {"event": "step", "tokens": 4096},
        {"event": "validated", "loss": last},
        {"event": "finished"},
    ]
    found = held_against(EXPECTED, events)
    assert (found["loss"], found["within"], found["tokens_trained"]) == (last, within, 4096)
    assert found["expected_loss"] == 3.0
