"""The presets by size are what the planner gives; mend a failure with ``python scripts/plan_presets.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cpulm.benchmark.planner import Elsewhere, Planner
from cpulm.settings.resolve_settings import AUTO, load_preset, resolve

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import plan_presets


@pytest.fixture(scope="module")
def files() -> dict[Path, str]:
    return plan_presets.files()


@pytest.mark.parametrize("name", ["tiny.yaml", "small.yaml", "medium.yaml", "large.yaml", "presets.md"])
def test_presets_and_their_page_are_what_is_planned(files: dict[Path, str], name: str) -> None:
    path = next(path for path in files if path.name == name)
    assert path.read_text(encoding="utf-8") == files[path]


@pytest.mark.parametrize("promise", plan_presets.PROMISES, ids=lambda promise: promise.name)
def test_the_steps_of_a_preset_take_its_time_on_the_reference(promise: plan_presets.Promise) -> None:
    settings = resolve(preset=promise.name)
    found = plan_presets.plan(promise)
    assert settings.train.steps is not None
    trained = settings.train.steps * found.step_seconds
    assert 0.8 < trained / (60 * promise.minutes) < 0.9  # the rest is for the start and the validations
    assert settings.model == found.settings.model
    assert load_preset(promise.name)[1]["time"] == promise.time


def test_a_plan_for_elsewhere_measures_and_reads_nothing_here() -> None:
    elsewhere = plan_presets.reference(100)
    found = [
        Planner(
            lambda planned: resolve(
                AUTO, planned=planned, assignments=["train.max_time=10m", "data.source=nowhere.txt"]
            ),
            show=lambda _: None,
            should_stop=lambda: True,
            elsewhere=Elsewhere(
                elsewhere.machine, {place: speed * rate for place, rate in elsewhere.rates.items()}, 100e6
            ),
        ).plan()
        for speed in (1, 10)
    ]
    assert found[1].best.non_embedding > found[0].best.non_embedding
