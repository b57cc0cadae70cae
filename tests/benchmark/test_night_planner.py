"""Plans a night with real pilot runs of small models; the plan must agree with their measurements."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpulm.benchmark import night_planner
from cpulm.benchmark.night_planner import plan_night, with_shape
from cpulm.errors import SettingsError
from cpulm.events import Event, Progress
from cpulm.settings import settings_yaml
from cpulm.settings_resolver import resolve, validate

SMALL = [
    "model.block_size=16",
    "data.tokenizer=byte",
    "data.vocab_size=null",
    "train.micro_batch_size=4",
    "runtime.threads=1",
    "runtime.allow_sleep=true",
]


@pytest.mark.slow
def test_a_plan_from_pilots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night_planner, "SHAPES", ((1, 8, 2), (1, 16, 2), (2, 16, 2), (2, 32, 2), (2, 512, 2)))
    monkeypatch.setattr(night_planner, "SHORTEST_SECONDS", 1.0)
    monkeypatch.setattr(night_planner, "_PILOT_SECONDS", (3.0, 3.0))
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 400)
    seen: list[Event] = []
    base = resolve(preset="tiny", assignments=[*SMALL, f"data.source={text}"])
    night = plan_night(base, 30.0, show=seen.append)

    assert len(night.pilots) == 6
    assert len({pilot.params for pilot in night.pilots}) == 3
    assert all(0 < pilot.loss < 6 for pilot in night.pilots)
    # The largest size sees fewer tokens than it has parameters in half a minute.
    assert [c.settings.model.n_embd for c in night.candidates] == [8, 16, 16, 32]
    assert night.best.expected.loss == min(c.expected.loss for c in night.candidates)
    for candidate in night.candidates:
        in_time = 0.95 * 30.0 * candidate.tokens_per_second
        unique = night.pilots[0].unique_tokens
        assert candidate.tokens == pytest.approx(min(in_time, night.most_passes * unique))
        assert candidate.epochs <= max(1.0, *(pilot.tokens / unique for pilot in night.pilots))
        assert (candidate.settings.train.max_time is None) == (in_time > unique * max(4, night.most_passes))
        assert candidate.expected.low <= candidate.expected.loss <= candidate.expected.high
    stages = {event.stage for event in seen if isinstance(event, Progress)}
    assert {"measuring sizes", "pilot 1 of 6", "pilot 6 of 6"} <= stages
    assert list(tmp_path.iterdir()) == [text]

    plan = tmp_path / "plan.yaml"
    plan.write_text(settings_yaml(night.best.settings))
    assert resolve(config=plan) == night.best.settings


def test_sizes_keep_everything_but_shape_rate_and_horizon() -> None:
    base = validate({"train": {"steps": 10, "lr": 0.01}, "model": {"n_embd": 256, "n_head": 4}})
    bigger = with_shape(base, (8, 512, 8), 3600.0)
    assert (bigger.model.n_layer, bigger.model.n_embd, bigger.model.n_head) == (8, 512, 8)
    assert (bigger.train.lr, bigger.train.muon_lr) == (0.005, base.train.muon_lr)
    assert (bigger.train.steps, bigger.train.max_time) == (None, 3600.0)
    assert bigger.data == base.data


def test_a_time_too_short_is_refused() -> None:
    with pytest.raises(SettingsError, match="--max-time 1m 00s is too short for a plan"):
        plan_night(validate({}), 60.0, show=lambda _: None)
