"""The state file of a night."""

from __future__ import annotations

from pathlib import Path

from cpulm.run_dir import RunDir
from cpulm.runs import supervisor_state


def test_the_parts_of_a_long_bad_night_are_forgotten_but_counted(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    night = supervisor_state.new_state(run, [])
    night.attempts = [supervisor_state.Attempt(began=float(number)) for number in range(1000)]
    supervisor_state.write(run, night)
    back = supervisor_state.read(run)
    assert back is not None
    assert (back.attempts[0].began, back.attempts[-1].began) == (0, 999)
    assert len(back.attempts) + back.attempts_dropped == 1000
    assert run.overnight.stat().st_size < 100_000
