"""A kill between a checkpoint's rename and the next log line must not remove a step from the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import small
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.run_dir import RunDir


def test_the_record_holds_every_step_before_a_checkpoint_of_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    save, seen = checkpoints.save, []

    def look_and_save(checkpoint: Checkpoint, path: Path) -> int:
        if checkpoint.step:
            seen.append(checkpoint.step)
            assert small.recorded_steps(run) == list(range(1, checkpoint.step + 1))
        return save(checkpoint, path)

    monkeypatch.setattr(checkpoints, "save", look_and_save)
    small.train(small.settings_for(small.write_text(tmp_path), "checkpoint.every_steps=5"), run.path)
    assert seen[0] == 5
    assert seen[-1] == 24
