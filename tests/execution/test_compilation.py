"""Runs whose step is compiled by torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import of, settings_for, train

from cpulm.events import RunStarted, StepDone
from cpulm.system.machine import read_machine


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    return path


needs_compiler = pytest.mark.skipif(read_machine().compiler is None, reason="no C++ compiler")


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("scalar_compile")
def test_compiled_and_eager_steps_agree(text: Path, tmp_path: Path) -> None:
    plain = ["model.dropout=0", "model.n_layer=1", "train.steps=4"]
    eager, _ = train(settings_for(text, *plain), tmp_path / "eager")
    compiled, _ = train(settings_for(text, *plain, "runtime.compile=on"), tmp_path / "compiled")
    assert of(RunStarted, compiled)[0].compiled
    assert not of(RunStarted, eager)[0].compiled
    losses = [[event.loss for event in of(StepDone, events)] for events in (eager, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("scalar_compile")
def test_a_compiler_that_fails_costs_the_speed_and_not_the_run(text: Path, tmp_path: Path) -> None:
    import torch._inductor.config

    with torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)):
        events, outcome = train(settings_for(text, "runtime.compile=on", "model.n_layer=1"), tmp_path / "run")
    assert outcome.reason == "horizon"
    assert not of(RunStarted, events)[0].compiled
    assert any("compiling failed" in note for note in of(RunStarted, events)[0].notes)
