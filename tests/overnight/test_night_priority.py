"""The priority of the processes of a night, the restarted ones included."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpulm.overnight.supervisor import resume_arguments, supervise
from cpulm.run_dir import RunDir


@pytest.mark.parametrize(
    ("given", "priority"),
    [(["--steps=9"], "--nice"), (["--steps=9", "--no-nice"], "--no-nice"), (["--nice"], "--nice")],
)
def test_a_night_has_low_priority_unless_another_is_given(
    tmp_path: Path, given: list[str], priority: str
) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    begun = supervise(run, tmp_path / "log", given, new=True)
    resumed = supervise(run, tmp_path / "log", given, new=False)
    for one in (begun._first, resumed._first):
        assert [word for word in one if word.endswith("nice")] == [priority]
    assert resume_arguments(begun._night) == ["resume", "--headless", "--", str(run.path)]
