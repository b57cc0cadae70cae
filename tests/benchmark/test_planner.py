"""Plans runs of small models on this machine; the plan must agree with the law and the settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpulm.api.new_run import resolve_new_run
from cpulm.benchmark import planner as planners
from cpulm.benchmark.expectation import TextLevel, plan_in_words, preparation_in_words, sampled
from cpulm.benchmark.pilots import refine
from cpulm.benchmark.planner import Planner
from cpulm.benchmark.run_plan import RunPlan, prepared_seconds
from cpulm.data.prepare import prepare
from cpulm.errors import SettingsError
from cpulm.estimate import recipe
from cpulm.estimate.learning_law import USUAL_TEXT, measured_law
from cpulm.events import Event, Notice, Progress
from cpulm.model.counts import count
from cpulm.settings import DataSettings, Settings, changed, settings_yaml
from cpulm.settings.resolve_settings import AUTO, resolve
from cpulm.training.run import prepare_run
from cpulm.units import format_duration

LINE = "the cat sat on the mat; the rat saw the cat and ran.\n"


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that are measured in milliseconds."""
    shapes = ((1, 16, 1), (1, 32, 2), (2, 64, 1), (2, 8192, 4))
    monkeypatch.setattr(recipe, "SHAPES", shapes)
    monkeypatch.setattr(planners, "SHAPES", shapes)


def made_for(text: Path, *assignments: str) -> Callable[[Mapping[str, Any]], Settings]:
    given = ["data.tokenizer=byte", "data.vocab_size=null", "runtime.threads=1", "runtime.allow_sleep=true"]
    return lambda planned: resolve(
        AUTO, planned=planned, assignments=[*given, *assignments], flags={"data.source": [str(text)]}
    )


def varied(size: int) -> bytes:
    """Lines of words that are drawn at random."""
    words = np.array([b"cat", b"dog", b"house", b"river", b"sat", b"ran", b"on", b"a", b"the", b"\nso"])
    return b" ".join(np.random.default_rng(0).choice(words, size // 4).tolist())


def planned(make: Callable[[Mapping[str, Any]], Settings]) -> RunPlan:
    return Planner(make, show=lambda _: None, should_stop=lambda: False).plan()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text(LINE * 400)
    return path


def test_the_size_with_the_lowest_expected_loss_is_planned(text: Path) -> None:
    plan = planned(made_for(text, "train.max_time=20s"))
    law = measured_law()
    for one in plan.candidates:
        again = law.expected(one.non_embedding, one.passes * plan.text_bytes, plan.text_bytes, USUAL_TEXT)
        assert one.relative_loss == again.loss
        assert one.passes <= law.most_passes * 1.0001
        assert one.tokens <= 20 * one.non_embedding or plan.candidates == [one]
    assert plan.best.relative_loss == min(one.relative_loss for one in plan.candidates)
    assert plan.best.settings.preset == AUTO
    assert plan.best.settings.train.average_fraction == recipe.AVERAGE_FRACTION


def test_a_plan_for_a_moment_measures_one_size(text: Path) -> None:
    seen: list[Event] = []
    make = made_for(text, "train.max_time=0.001")
    plan = Planner(make, show=seen.append, should_stop=lambda: False).plan()
    assert [event.done for event in seen if isinstance(event, Progress) and event.finished] == [1]
    assert len(plan.candidates) > 1


@pytest.mark.parametrize("given", ["folder", "file"])
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_given_vocabulary_is_planned_with_and_split_if_it_was_merged(
    text: Path, kind: str, given: str
) -> None:
    data = DataSettings(source=[str(text)], tokenizer=kind, vocab_size=280 if kind == "bpe" else None)
    folder = text.with_name("tokens")
    size = prepare(data, emit=lambda _: None, should_stop=lambda: False, out=folder).vocab_size

    def make(values: Mapping[str, Any]) -> Settings:
        settings = ["train.max_time=8h", "runtime.threads=1"]
        flags: dict[str, Any] = {"data.source": [str(folder)]}
        if given == "file":
            flags = {"data.source": [str(text)], "data.tokenizer": str(folder / "tokenizer.json")}
        return resolve(AUTO, planned=values, assignments=settings, flags=flags)

    best = planned(make).best
    assert (best.settings.train.bpe_dropout > 0) == (kind == "bpe")
    assert best.params == count(best.settings.model, size).total


def test_what_the_user_gives_stays(text: Path) -> None:
    make = made_for(text, "train.max_time=20s", "model.n_embd=24", "model.dropout=0.37", "train.lr=0.02")
    settings = planned(make).best.settings
    assert (settings.model.n_embd, settings.model.dropout, settings.train.lr) == (24, 0.37, 0.02)
    assert 24 % settings.model.n_head == 0


def test_no_more_passes_than_were_measured_are_planned(text: Path) -> None:
    plan = planned(made_for(text, "train.max_time=8h"))
    best, size = plan.best, plan.text_bytes
    text_tokens = size / recipe.bytes_per_token(best.settings.data)
    borne = recipe.most_passes(best.non_embedding, text_tokens, splits=False)
    expected = min(measured_law().most_passes, max(borne, 1e5 / text_tokens))
    assert best.passes == pytest.approx(expected, abs=0.05)  # planned in tenths of a pass
    assert 0 < plan.best.spare_seconds < plan.seconds
    train = plan.best.settings.train
    assert train.max_time == plan.seconds  # on a machine that is slower than measured they take longer
    assert train.max_passes == pytest.approx(best.passes, abs=0.06)
    assert plan.best.spare_seconds < plan.seconds - 5 - plan.best.trained_seconds  # to start, and to validate
    until = planned(made_for(text, "train.until=2099-01-01T07:00:00+00:00")).best.settings.train
    assert (until.until is None, until.max_passes) == (False, train.max_passes)


@pytest.mark.parametrize(("given", "passes"), [("0.5", 0.5), ("null", None)])
def test_passes_that_the_user_gives_are_planned(text: Path, given: str, passes: float | None) -> None:
    best = planned(made_for(text, "train.max_time=8h", f"train.max_passes={given}")).best
    assert best.settings.train.max_passes == passes
    assert best.passes == pytest.approx(passes) if passes else best.passes > 1


def test_a_tiny_text_has_updates_enough(text: Path) -> None:
    tiny = text.with_name("tiny.txt")
    tiny.write_text(LINE * 80)
    assert planned(made_for(tiny, "train.max_time=75s")).best.passes == pytest.approx(
        measured_law().most_passes
    )


def test_a_long_time_for_a_short_text_has_two_generations_unless_the_user_says_otherwise(text: Path) -> None:
    plan = planned(made_for(text, "train.max_time=8h"))
    train = plan.best.settings.train
    assert train.generations == 2
    assert plan.best.trained_seconds + plan.best.spare_seconds < plan.seconds
    for given in (1, 3):
        train = planned(made_for(text, "train.max_time=8h", f"train.generations={given}")).best.settings.train
        assert train.generations == given
    long = text.with_name("long.txt")
    long.write_text(LINE * 40_000)
    assert planned(made_for(long, "train.max_time=20s")).best.settings.train.generations == 1


def test_no_size_far_beyond_the_measured_ones_is_planned(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpulm.benchmark.planner._BEYOND_MEASURED", 1e-9)
    assert len(planned(made_for(text, "train.max_time=20s")).candidates) == 1


def test_a_small_text_has_a_small_model(text: Path) -> None:
    text.write_text(LINE * 40)
    plan = planned(made_for(text, "train.max_time=20s"))
    assert [one.settings.model.n_embd for one in plan.candidates] == [16, 32]
    assert all(one.non_embedding <= 18 * plan.text_bytes for one in plan.candidates)


@pytest.fixture
def vast(tmp_path: Path) -> Path:
    path = tmp_path / "vast.txt"
    with path.open("wb") as file:
        file.write(LINE.encode() * 8000)
        file.truncate(20 * 10**9)  # a hole that takes no space
    return path


def test_of_a_vast_text_a_share_is_planned_with(vast: Path) -> None:
    plan = planned(made_for(vast, "train.max_time=10m"))
    assert 3.5 < 1 / plan.best.passes < 8.1  # without the time that tokenizing more would have taken
    assert math.log2(plan.share).is_integer()
    assert plan.share == plan.best.settings.data.share == pytest.approx(plan.text_bytes / (0.95 * 20e9))
    said = preparation_in_words(plan)
    assert said is not None
    seen = plan.best.passes * plan.share
    assert said.message == (
        f"{plan.share * 100:.2g}% of 17.7 GiB of text are used (data.share): in 10m 00s the run sees "
        f"{seen * 100:.2g}%"
    )


def test_no_more_is_tokenized_than_a_tenth_of_the_time_allows(
    vast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planners, "_TOKENIZED_TIMES", math.inf)
    plan = planned(made_for(vast, "train.max_time=10m"))
    assert plan.share == plan.best.settings.data.share == 1 / 16
    assert prepared_seconds(plan.text_bytes) == pytest.approx(0.95 * 20e9 / 16 / 3e7)
    said = preparation_in_words(dataclasses.replace(plan, best=dataclasses.replace(plan.best, passes=1.5)))
    assert said is not None
    assert "tokenizing all of it would take about 10m 33s of the 10m 00s" in said.message


def test_a_text_that_is_read_in_no_time_is_used_whole(text: Path) -> None:
    assert planned(made_for(text, "train.max_time=0.01s")).share == 1


def test_a_given_share_stays_and_its_preparation_is_spoken_of(vast: Path) -> None:
    plan = planned(made_for(vast, "train.max_time=1h", "data.share=1"))
    assert plan.text_bytes == pytest.approx(0.95 * 20e9)
    said = preparation_in_words(plan)
    assert said is not None
    assert said.level == "warning"
    assert "tokenizing 17.7 GiB takes about 10m 33s of the 1h 00m" in said.message
    small = dataclasses.replace(plan, text_bytes=1e6)
    assert preparation_in_words(small) is None
    half = planned(made_for(vast, "train.max_time=8h", "data.share=0.5"))
    assert half.text_bytes == pytest.approx(0.5 * 0.95 * 20e9)


def test_rows_that_are_read_to_the_end_take_time_from_the_plan(vast: Path) -> None:
    rows = vast.rename(vast.with_suffix(".csv"))
    with rows.open("r+b") as file:
        file.write(b"text\n")
    plan = planned(made_for(rows, "train.max_time=2h"))
    reading = (1 - plan.share) * 20e9 / 2e7
    assert plan.prepared_seconds == pytest.approx(reading + plan.text_bytes / 3e7)
    assert plan.best.trained_seconds == pytest.approx(0.88 * (7200 - 5 - plan.prepared_seconds), rel=0.02)
    said = preparation_in_words(plan)
    assert said is not None
    assert said.level == "warning"
    takes = format_duration(plan.prepared_seconds)
    assert f"but all of it is read, which takes about {takes} of the 2h 00m" in said.message
    with pytest.raises(SettingsError, match="reading the text takes about 16m 09s, and the run has 5m 00s"):
        planned(made_for(rows, "train.max_time=5m"))


def test_a_large_text_has_a_first_look_that_reads_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpulm.benchmark.expectation._SAMPLE_BYTES", 2e6)
    for name, is_quick in (("large.txt", True), ("large.csv", False)):
        (path := tmp_path / name).write_bytes(b"text\n" + varied(20_000_000))
        monkeypatch.setattr("cpulm.benchmark.expectation._MOST_READ_SECONDS", 0.5)
        plan = planned(made_for(path, "train.max_time=1h"))
        settings = sampled(plan)
        assert (settings is not None) is is_quick
        if settings is None:
            continue
        ready = prepare_run(settings, show=lambda _: None, should_stop=lambda: False)
        level = TextLevel.of(ready.tokens, plan.text_bytes)
        assert 1e6 < ready.tokens.meta["train"]["bytes"] < 3e6
        assert level.unique_bytes == plan.text_bytes == pytest.approx(0.95 * path.stat().st_size, rel=0.01)
        whole = prepare_run(plan.best.settings, show=lambda _: None, should_stop=lambda: False)
        known = TextLevel.of(whole.tokens)
        assert level.bytes_per_token == pytest.approx(known.bytes_per_token, rel=0.01)
        assert level.expected(plan.best).loss == pytest.approx(known.expected(plan.best).loss, rel=0.05)
        first, final = (plan_in_words(plan, *one) for one in ((ready, level), (whole, known)))
        # The speed is measured each time.
        assert [line.split(" of text and ")[0] for line in first[:2]] == [
            line.split(" of text and ")[0] for line in final[:2]
        ]


def test_a_plan_needs_a_time(text: Path) -> None:
    with pytest.raises(SettingsError, match="needs a time"):
        planned(made_for(text, "train.steps=10"))
    with pytest.raises(SettingsError, match="planned for a time"):
        resolve(preset=AUTO)


def test_a_plan_says_what_was_chosen_and_what_to_expect(text: Path) -> None:
    make = made_for(text, "train.max_time=8h")
    plan = planned(make)
    ready = prepare_run(
        plan.best.settings, show=lambda _: None, should_stop=lambda: False, block_is_wish=True
    )
    lines = plan_in_words(plan, ready)
    model = ready.settings.model
    assert f"{model.n_layer} layers, {model.n_embd} wide" in lines[0]
    assert f"dropout {model.dropout:g}, weight decay" in lines[1]
    split = changed(ready.settings, train=changed(ready.settings.train, bpe_dropout=0.1))
    also = plan_in_words(plan, dataclasses.replace(ready, settings=split))[1]
    assert f"dropout {model.dropout:g}, BPE dropout 0.1, weight decay" in also
    assert "bits per byte" in lines[2]
    assert lines[3].startswith("2 generations, each of about ")
    assert "the text is short for the time" in lines[4]
    tokens = plan.best.tokens / plan.best.passes / 1000  # about a thousandth of the text
    short = dataclasses.replace(plan, best=dataclasses.replace(plan.best, tokens=tokens, spare_seconds=0.0))
    assert "the time is short for the text" in plan_in_words(short, ready)[4]
    stored = text.with_name("plan.yaml")
    stored.write_text(settings_yaml(plan.best.settings))
    assert resolve(config=stored) == plan.best.settings


@pytest.mark.slow
def test_pilots_correct_the_level(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpulm.benchmark.pilots._SECONDS", (1.0, 1.0))
    monkeypatch.setattr(planners, "MOST_TOKENS_PER_PARAMETER", math.inf)
    seen: list[Event] = []
    planner = Planner(made_for(text, "train.max_time=1m"), show=seen.append, should_stop=lambda: False)
    plan = planner.plan()
    ready = prepare_run(
        plan.best.settings, show=lambda _: None, should_stop=lambda: False, block_is_wish=True
    )
    before = TextLevel.of(ready.tokens)
    refined, level, pilots = refine(planner, plan, ready.tokens, before, seen.append)
    assert 2 <= len(pilots) <= 3
    for pilot in pilots:
        size = next(one for one in plan.candidates if one.place == pilot.place)
        trained = pilot.tokens * before.bytes_per_token
        expected = before.law.expected(size.non_embedding, trained, before.unique_bytes, before.curve)
        assert pilot.factor == pytest.approx(pilot.loss / expected.loss)
    chosen = next(pilot for pilot in pilots if pilot.place == refined.best.place)
    assert level.expected(refined.best).loss == pytest.approx(
        before.expected(refined.best).loss * chosen.factor
    )
    narrow, wide = level.expected(refined.best), before.expected(refined.best)
    assert narrow.high / narrow.loss < wide.high / wide.loss
    assert any(isinstance(event, Notice) and "pilots of about" in event.message for event in seen)
    assert "pilot 1 of" in str([event.stage for event in seen if isinstance(event, Progress)])
    assert list(text.parent.iterdir()) == [text]
    with pytest.raises(SettingsError, match="too short for pilots"):
        refine(planner, dataclasses.replace(plan, seconds=1.0), ready.tokens, before, seen.append)


@pytest.mark.parametrize(
    ("preset", "flags", "config", "is_auto"),
    [
        (None, {"train.max_time": 60.0}, None, True),
        (None, {"train.until": "2099-01-01T07:00:00+00:00"}, None, True),
        (AUTO, {}, None, True),
        ("tiny", {"train.max_time": 60.0}, None, False),
        (None, {"train.steps": 60}, None, False),
        (None, {"train.max_time": 60.0}, "train: {lr: 0.01}", False),
    ],
)
def test_a_run_with_a_time_and_nothing_to_begin_with_is_planned(
    preset: str | None, flags: dict[str, Any], config: str | None, is_auto: bool, tmp_path: Path
) -> None:
    file = None if config is None else tmp_path / "plan.yaml"
    if file is not None and config is not None:
        file.write_text(config)
    given = {"config": file, "environ": {}, "assignments": (), "flags": flags}
    settings, make = resolve_new_run(preset, given)
    assert (make is not None) == is_auto
    if make is not None and flags:
        assert make({"model.n_layer": 3}).model.n_layer == 3
        assert make({}).train == settings.train
