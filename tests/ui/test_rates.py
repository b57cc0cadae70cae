"""The learning rates of AdamW and Muon are always shown together."""

from __future__ import annotations

import dataclasses

import pytest
from one_run import run_started, step_done

from cpulm.ui import panels
from cpulm.ui.canvas import UNICODE, Line
from cpulm.ui.plain import step_line
from cpulm.ui.snapshot import Snapshot, fold


def words(lines: list[Line]) -> str:
    return "\n".join("".join(part.text for part in line) for line in lines)


@pytest.mark.parametrize(
    ("muon_lr", "shown"), [(1.3e-2, "2.0e-03  1.3e-02"), (None, "learning rate    2.00e-03")]
)
def test_the_dashboard_shows_both_rates_if_there_are_two(muon_lr: float | None, shown: str) -> None:
    step = dataclasses.replace(step_done(3, 2.0), muon_lr=muon_lr)
    snapshot = fold(fold(Snapshot(), run_started()), step)
    assert shown in words(panels.training(snapshot, 28, UNICODE))
    line = step_line(step, snapshot)
    assert ("muon_lr 1.3e-02" in line) == (muon_lr is not None)
    assert "lr 2.0e-03" in line
