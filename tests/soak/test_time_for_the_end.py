"""A run with a horizon in time reserves enough time for its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import small
from cpulm.errors import SettingsError
from cpulm.events import Event
from cpulm.generation.generate import sample_text
from cpulm.training import run as runs
from cpulm.training import trainer, validator


def test_the_sample_is_part_of_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[float] = []
    write = sample_text
    reserve = trainer.Trainer._reserve

    def slowly(*args: Any, **options: Any) -> str:
        time.sleep(1.0)
        return write(*args, **options)

    def look(self: trainer.Trainer, seconds: float) -> None:
        reserve(self, seconds)
        kept.append(self.horizon.reserve_seconds)

    monkeypatch.setattr(validator, "sample_text", slowly)
    monkeypatch.setattr(trainer.Trainer, "_reserve", look)
    ends_at_once = ["train.steps=null", "train.max_time=1h", "eval.every=1", "train.target_loss=1000"]
    small.train(small.settings_for(small.write_text(tmp_path), *ends_at_once), tmp_path / "run")
    assert len(kept) == 1
    assert kept[0] > 1.0


def test_what_loading_took_is_part_of_the_time(tmp_path: Path) -> None:
    settings = small.settings_for(small.write_text(tmp_path), "train.steps=null", "train.max_time=1h")
    seen: list[Event] = []
    with pytest.raises(SettingsError, match="over before the first update"):
        runs.train(
            settings, tmp_path / "run", show=seen.append, record=small.record, began=time.monotonic() - 3600
        )
    assert not [event for event in seen if event.kind == "step"]
    assert not (tmp_path / "run").exists()
