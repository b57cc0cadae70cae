"""One small case for each fault that fuzzing has found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import small
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.load_model import load_model
from cpulm.errors import DataError, SettingsError
from cpulm.run_dir import RunDir
from cpulm.settings import changed
from cpulm.ui.canvas import UNICODE
from cpulm.ui.chart import chart
from cpulm.ui.curve import ThinnedCurve


def test_a_record_whose_steps_go_back_is_still_drawn() -> None:
    losses = ThinnedCurve()
    for step in [500, 510, -1, 7, 520]:
        losses = losses.add(step, 4.0 - step / 1000)
    assert chart(losses.buckets, losses.buckets, 60, 10, UNICODE)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    small.train(small.settings_for(small.write_text(tmp_path)), run.path)
    return run


def test_a_checkpoint_without_a_horizon_says_so(run: RunDir) -> None:
    checkpoint = checkpoints.load(run.latest)
    none = changed(checkpoint.settings.train, steps=None)
    checkpoint.settings = changed(checkpoint.settings, train=none)
    checkpoints.save(checkpoint, run.latest)
    with pytest.raises(SettingsError, match="no horizon"):
        small.resume(run.path)


def test_settings_that_mean_another_model_than_the_weights_are_refused(run: RunDir) -> None:
    checkpoint = checkpoints.load(run.latest)
    vast = changed(checkpoint.settings.model, n_inner=1 << 20)
    checkpoint.settings = changed(checkpoint.settings, model=vast)
    checkpoints.save(checkpoint, run.latest)
    for read in (lambda: small.resume(run.path), lambda: load_model(run.latest, warn=print)):
        with pytest.raises(DataError, match="do not fit each other"):
            read()


def test_settings_beyond_their_limits_are_refused(run: RunDir) -> None:
    checkpoint = checkpoints.load(run.latest)
    beyond = checkpoint.settings.model.model_copy(update={"n_inner": 10**12})
    checkpoint.settings = checkpoint.settings.model_copy(update={"model": beyond})
    checkpoints.save(checkpoint, run.latest)
    with pytest.raises(DataError, match=r"model\.n_inner = 1000000000000: must be at most 1,048,576"):
        load_model(run.latest, warn=print)
