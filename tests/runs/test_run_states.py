"""Every state of a run has its words, and every end of a run is a state."""

from __future__ import annotations

import inspect
from typing import get_args

from cpulm.cli.runs import runs
from cpulm.runs.run_states import END_STATES, RUN_STATES, RunState
from cpulm.runs.supervisor_state import ENDED, NIGHT_STATES, NightState


def test_every_state_has_its_words() -> None:
    assert set(RUN_STATES) == set(get_args(RunState))
    assert set(NIGHT_STATES) == set(get_args(NightState))
    assert set(END_STATES.values()) < set(RUN_STATES)
    assert set(ENDED) < set(NIGHT_STATES)


def test_the_help_of_runs_names_them_all() -> None:
    page = inspect.getdoc(runs) or ""
    assert [state for state in RUN_STATES if f"*{state}*" not in page] == []
