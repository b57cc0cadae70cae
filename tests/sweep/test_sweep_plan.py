"""From a request to a plan on the disk; errors are found before training begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpulm.data.tokenizer import byte_tokenizer, char_tokenizer
from cpulm.errors import CpulmError, DataError, ResourceError, SettingsError
from cpulm.settings import Settings
from cpulm.sweep.plan import Plan, SweepDir, read_plan, read_settings, trial_names
from cpulm.sweep.prepare_plan import Beginning, Wish, make_plan, resumed, settle
from cpulm.system.machine import Machine, choose, read_machine

SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "data.tokenizer=byte",
    "data.vocab_size=null",
    "train.micro_batch_size=4",
    "train.steps=80",
    "eval.every=30",
)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return read_machine()


@pytest.fixture
def text(in_empty_folder: Path) -> Path:
    path = in_empty_folder / "text.txt"
    path.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(100)))
    return path


def wish(*assignments: str, **changes: Any) -> Wish:
    """What is asked stands in place of what is small by itself; a time stands in place of the steps."""
    keys = {one.partition("=")[0] for one in assignments}
    keys |= {"train.steps"} if "train.max_time" in keys else set()
    small = [one for one in SMALL if one.partition("=")[0] not in keys]
    plain = Wish(
        preset=None,
        config=None,
        environ={},
        assignments=(*small, "data.source=text.txt", *assignments),
        flags={},
        begin=lambda _: Beginning({}, byte_tokenizer()),
        random=None,
        random_seed=0,
        parallel=1,
        halving=False,
    )
    return replace(plain, **changes)


def plan(asked: Wish, machine: Machine) -> tuple[Plan, list[Settings]]:
    return make_plan(asked, machine, show=lambda _: None, should_stop=lambda: False)


def test_every_combination_is_a_trial_with_its_settings(text: Path, machine: Machine) -> None:
    found, settings = plan(wish("train.lr=1e-3,2e-3", "train.optimizer=adamw,muon"), machine)
    assert [trial.name for trial in found.trials] == [
        "lr=1e-3-optimizer=adamw",
        "lr=1e-3-optimizer=muon",
        "lr=2e-3-optimizer=adamw",
        "lr=2e-3-optimizer=muon",
    ]
    assert [(one.train.lr, one.train.optimizer) for one in settings] == [
        (0.001, "adamw"),
        (0.001, "muon"),
        (0.002, "adamw"),
        (0.002, "muon"),
    ]
    assert found.keys == ("train.lr", "train.optimizer")
    assert found.keep == ()
    assert all(trial.steps == 80 and trial.rungs == () for trial in found.trials)
    assert all(one.eval.every == 30 for one in settings)


def test_the_environment_and_options_hold_for_all_trials(text: Path, machine: Machine) -> None:
    asked = wish(
        "train.lr=1e-3,2e-3",
        environ={"CPULM_TRAIN__SEED": "5"},
        flags={"train.tokens": 6400, "train.steps": None},
    )
    found, settings = plan(asked, machine)
    assert [one.train.seed for one in settings] == [5, 5]
    assert [trial.steps for trial in found.trials] == [100, 100]


def test_runs_that_begin_with_a_model_take_its_settings_and_tokens(text: Path, machine: Machine) -> None:
    tokenizer = char_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    asked: list[str | None] = []

    def begin(settings: Settings) -> Beginning:
        asked.append(settings.train.init_from)
        return Beginning({"train.optimizer": "adamw", "data.tokenizer": "char"}, tokenizer)

    _, settings = plan(wish("train.init_from=a,b", begin=begin), machine)
    assert [one.train.init_from for one in settings] == ["a", "b"]
    assert {one.train.optimizer for one in settings} == {"adamw"}
    assert set(asked) == {"a", "b"}


def test_with_halving_validations_fall_on_the_rungs(text: Path, machine: Machine) -> None:
    found, settings = plan(wish("train.lr=1e-3,2e-3,3e-3,4e-3", halving=True), machine)
    assert found.keep == (2, 1)
    assert [trial.rungs for trial in found.trials] == [(20, 40)] * 4
    assert [one.eval.every for one in settings] == [20] * 4


def test_random_draws_leave_out_what_does_not_fit_together(text: Path, machine: Machine) -> None:
    found, settings = plan(wish("model.n_head=1..8", "train.lr=1e-4..1e-2", random=6), machine)
    assert len(found.trials) == 6
    assert all(16 % one.model.n_head == 0 for one in settings)
    assert plan(wish("model.n_head=1..8", "train.lr=1e-4..1e-2", random=6), machine)[1] == settings


def test_the_cores_are_divided_among_the_runs(text: Path, machine: Machine) -> None:
    cores = choose(machine).threads.value
    _, settings = plan(wish("train.lr=1e-3,2e-3", parallel=cores), machine)
    if cores > 1:
        assert [one.runtime.threads for one in settings] == [1, 1]
    with pytest.raises(SettingsError, match=f"--parallel {cores + 1}"):
        plan(wish("train.lr=1e-3,2e-3", parallel=cores + 1), machine)


@pytest.mark.parametrize(
    ("asked", "error", "named"),
    [
        (wish(), SettingsError, "nothing to try"),
        (wish("train.lrr=1,2"), SettingsError, "train.lrr"),
        (wish("train.lr=1e-3,fast"), SettingsError, "train.lr"),
        (wish("train.lr=-1..1", random=3), SettingsError, "train.lr"),
        (wish("train.lrr=1..2", random=3), SettingsError, "train.lrr"),
        (wish("model.n_head=2,3"), SettingsError, "model.n_head=3"),
        (wish("train.lr=1e-4..1e-2"), SettingsError, "--set train.lr"),
        (wish("train.lr=1e-3,2e-3", random=3), SettingsError, "only 2 different"),
        (wish("train.steps=80,90", flags={"train.steps": 5}), SettingsError, "given twice"),
        (wish("train.lr=1e-3,2e-3", "train.steps=null"), SettingsError, "train.steps"),
        (wish("train.lr=1e-3,2e-3", flags={"train.until": "2099-01-01T07:00"}), SettingsError, "train.until"),
        (wish("model.block_size=16,50000"), SettingsError, "block_size"),
        (wish("train.max_time=10s,20s", halving=True), SettingsError, "horizon is a time"),
        (wish("train.micro_batch_size=4,8", halving=True), SettingsError, "equal numbers of tokens"),
        (wish("data.val_source=absent.txt,gone.txt"), DataError, "absent.txt"),
        (wish("model.n_embd=16,65536"), ResourceError, "memory"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    text: Path, machine: Machine, asked: Wish, error: type[CpulmError], named: str
) -> None:
    with pytest.raises(error) as refused:
        plan(asked, machine)
    assert named in refused.value.message
    assert refused.value.hint
    assert [path.name for path in text.parent.iterdir()] == ["text.txt"]


def test_a_plan_comes_back_from_the_disk(text: Path, machine: Machine) -> None:
    found, settings = plan(wish("train.lr=1e-3,2e-3", 'sample.prompt="1e5"', halving=True), machine)
    folder, there = settle(Path("here"), "tiny", found, settings)
    assert not there
    assert read_plan(folder) == found
    assert [read_settings(folder, trial) for trial in found.trials] == settings
    assert settle(Path("here"), "tiny", found, settings) == (folder, True)
    assert resumed(Path("here")) == resumed(folder.plan) == (folder, found)


def test_the_same_request_finds_its_sweep_and_another_one_a_folder_of_its_own(
    text: Path, machine: Machine
) -> None:
    one = plan(wish("train.lr=1e-3,2e-3"), machine)
    other = plan(wish("train.lr=1e-3,2e-3", "train.seed=7"), machine)
    folders = [settle(None, "tiny", *asked) for asked in (one, other, one, other)]
    names = [(folder.path.as_posix(), there) for folder, there in folders]
    assert names == [
        ("sweeps/tiny-1", False),
        ("sweeps/tiny-2", False),
        ("sweeps/tiny-1", True),
        ("sweeps/tiny-2", True),
    ]


def test_a_folder_that_holds_something_else_is_left_alone(text: Path, machine: Machine) -> None:
    one = plan(wish("train.lr=1e-3,2e-3"), machine)
    settle(Path("here"), "tiny", *one)
    other = plan(wish("train.lr=1e-3,4e-3"), machine)
    with pytest.raises(SettingsError, match="another sweep"):
        settle(Path("here"), "tiny", *other)
    with pytest.raises(SettingsError, match="something else"):
        settle(text, "tiny", *other)


def test_a_folder_that_is_not_a_plan_is_refused(tmp_path: Path) -> None:
    folder = SweepDir(tmp_path)
    with pytest.raises(DataError, match="no sweep"):
        read_plan(folder)
    with pytest.raises(DataError, match=r"absent is not a sweep: there is no such folder"):
        resumed(tmp_path / "absent")
    for content in ("[", "format_version: 2\n", "format_version: 1\n"):
        folder.plan.write_text(content)
        with pytest.raises(DataError, match="cannot be read"):
            read_plan(folder)


def test_names_differ_and_are_fit_for_every_disk() -> None:
    names = trial_names(["data.source", "train.lr"], [("[a/b]", "1"), ("[a:b]", "1"), ("[A*b]", "1")])
    assert len({name.lower() for name in names}) == 3
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzAB=_-0123456789.") for name in names)
    (long,) = trial_names(["sample.prompt"], [("x" * 500,)])
    assert len(long) <= 60
