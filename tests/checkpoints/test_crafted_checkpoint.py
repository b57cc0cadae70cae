"""A checkpoint with a valid digest and impossible contents is refused before anything is computed from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.soak import small
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.load_model import load_model
from cpulm.checkpoints.seal import seal
from cpulm.data.tokenizer import char_tokenizer
from cpulm.errors import DataError, SettingsError
from cpulm.events import Event, Notice
from cpulm.inspection.inspect_model import inspect_model
from cpulm.run_dir import RunDir
from cpulm.training import run as runs

Record = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> RunDir:
    return trained(tmp_path_factory.mktemp("crafted"))


def trained(folder: Path) -> RunDir:
    run = RunDir(folder / "run")
    small.train(small.settings_for(small.write_text(folder), "train.steps=2"), run.path)
    checkpoints.duplicate(run.best, run.path / "honest.pt")
    return run


def crafted(run: RunDir, change: Callable[[Record], object]) -> None:
    record = torch.load(run.path / "honest.pt", weights_only=True)
    change(record)
    with run.latest.open("w+b") as file:
        torch.save(record, file)
        seal(file)


def nested() -> list[Any]:
    inside: list[Any] = ["x"]
    for _ in range(60):
        inside = [inside] * 9
    return inside


def deep() -> list[Any]:
    inside: list[Any] = []
    for _ in range(300):
        inside = [inside]
    return inside


def muon(record: Record) -> Record:
    state: Record = record["optimizers"][0]["state"][0]
    return state


def adamw(record: Record) -> Record:
    state: Record = record["optimizers"][1]["state"][0]
    return state


def first(record: Record) -> str:
    return str(next(iter(record["model"])))


def strided(record: Record) -> None:
    momentum = muon(record)["momentum"]
    muon(record)["momentum"] = torch.zeros(1).expand(momentum.shape)


def shared(record: Record) -> None:
    adamw(record)["exp_avg_sq"] = adamw(record)["exp_avg"]


CHANGES: dict[str, Callable[[Record], object]] = {
    "a momentum that is too small": lambda r: muon(r).update(momentum=torch.zeros(1, 1)),
    "a momentum of another dtype": lambda r: muon(r).update(momentum=muon(r)["momentum"].double()),
    "a momentum in half": lambda r: muon(r).update(momentum=muon(r)["momentum"].half()),
    "a momentum of zero strides": strided,
    "a transposed momentum": lambda r: muon(r).update(momentum=muon(r)["momentum"].t().contiguous().t()),
    "a sparse momentum": lambda r: muon(r).update(momentum=muon(r)["momentum"].to_sparse()),
    "no momentum": lambda r: muon(r).clear(),
    "a list for a momentum": lambda r: muon(r).update(momentum=[1.0]),
    "an average of another shape": lambda r: adamw(r).update(exp_avg=torch.zeros(3)),
    "two averages in one memory": shared,
    "half an AdamW": lambda r: adamw(r).pop("exp_avg_sq"),
    "a step that is a matrix": lambda r: adamw(r).update(step=torch.zeros(2, 2)),
    "a step before the first": lambda r: adamw(r).update(step=torch.tensor(-5.0)),
    "a step that is not a number": lambda r: adamw(r).update(step=torch.tensor(torch.nan)),
    "a state of no parameter": lambda r: r["optimizers"][0]["state"].update({999: muon(r)}),
    "a state without a number": lambda r: r["optimizers"][0]["state"].update(x={}),
    "states as a list": lambda r: r["optimizers"][0].update(state=[muon(r)]),
    "one optimizer": lambda r: r["optimizers"].pop(),
    "no groups": lambda r: r["optimizers"][0].update(param_groups=[]),
    "weights in double": lambda r: r["model"].update({first(r): r["model"][first(r)].double()}),
    "weights of zero strides": lambda r: r["model"].update(
        {first(r): torch.zeros(1).expand(r["model"][first(r)].shape)}
    ),
    "averaged weights in double": lambda r: r.update(
        other_weights={name: value.double() for name, value in r["model"].items()}
    ),
    "averaged weights of another shape": lambda r: r.update(
        other_weights={name: torch.zeros(1) for name in r["model"]}
    ),
    "averaged weights of another model": lambda r: r.update(other_weights={"w": torch.zeros(2, 2)}),
    "complex weights": lambda r: r["model"].update({first(r): r["model"][first(r)].to(torch.complex64)}),
    "a random state that is too short": lambda r: r["random"].update(cpu=torch.zeros(3, dtype=torch.uint8)),
    "a random state of floats": lambda r: r["random"].update(cpu=torch.zeros(5056)),
    "no random state": lambda r: r["random"].clear(),
    "a step of -5": lambda r: r["position"].update(step=-5),
    "a step beyond every run": lambda r: r["position"].update(step=2**62),
    "tokens below none": lambda r: r["position"].update(tokens=-1),
    "a skipped batch below none": lambda r: r["position"].update(skipped=[-1]),
    "nested shared lists for a step": lambda r: r["position"].update(step=nested()),
    "nested shared lists in the settings": lambda r: r["settings"]["train"].update(lr=nested()),
    "nested shared lists for a version": lambda r: r.update(version=nested()),
    "a deep list in the settings": lambda r: r["settings"]["data"].update(source=deep()),
    "a setting of 100,000 letters": lambda r: r["settings"].update({"x" * 100_000: 1}),
    "sources of 5 million letters": lambda r: r["settings"]["data"].update(source=["x" * 1000] * 5000),
    "a device of 100,000 letters": lambda r: r["settings"]["runtime"].update(device="x" * 100_000),
    "a device's name of 100,000 letters": lambda r: r["runtime"].update(device_name="x" * 100_000),
    "a preset of 100,000 letters": lambda r: r["settings"].update(preset="x" * 100_000),
    "a path of 100,000 letters": lambda r: r["data"].update(path="x" * 100_000, digest="d"),
    "a path with a zero": lambda r: r["data"].update(path="a\0b", digest="d"),
    "no vocabulary": lambda r: r.update(vocab_size=0),
    "a vocabulary smaller than the tokenizer's": lambda r: r.update(vocab_size=200),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_cannot_be_is_refused(
    run: RunDir, change: Callable[[Record], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    crafted(run, change)
    if change in (CHANGES["a path of 100,000 letters"], CHANGES["a path with a zero"]):
        crafted(run, lambda record: (change(record), record["settings"]["data"].update(source=["gone"])))
    with pytest.raises(DataError) as caught:
        runs.resume(run.latest, {"steps": 4}, {}, show=lambda _: None, record=small.record)
    assert len(caught.value.message) < 2000


def test_a_model_of_another_tokenizer_is_refused(run: RunDir) -> None:
    crafted(run, lambda record: record.update(tokenizer=char_tokenizer("abc").to_json()))
    with pytest.raises(DataError, match="the tokenizer has 4 tokens, the model 257"):
        load_model(run.latest, warn=pytest.fail)


def test_weights_that_are_not_finite_are_refused_and_what_overflows_is_said(run: RunDir) -> None:
    """A file that another program is to read, or a page of figures, would hide that the training diverged."""
    crafted(run, lambda record: record["model"][first(record)].fill_(torch.nan))
    with pytest.raises(DataError, match=r"the weights in .* are not finite: its training diverged"):
        load_model(run.latest, warn=pytest.fail)
    for too_large in (
        lambda record: [value.fill_(1e38) for value in record["model"].values()],
        lambda record: record["model"][first(record)].sign_().mul_(3e38),
    ):
        crafted(run, too_large)
        with pytest.raises(DataError, match="computes values that are not finite: its training diverged"):
            inspect_model(run.latest)


def test_a_weight_of_another_shape_is_named(run: RunDir) -> None:
    crafted(run, lambda r: r["model"].update({first(r): r["model"][first(r)].t().contiguous()}))
    with pytest.raises(DataError, match=r"wte\.weight is \[16, 257\] instead of \[257, 16\]"):
        load_model(run.latest, warn=pytest.fail)


def test_what_was_damaged_is_said_where_an_older_checkpoint_is_finished(tmp_path: Path) -> None:
    run = trained(tmp_path)
    crafted(run, lambda record: record["settings"]["model"].update(n_layer=10**9))
    seen: list[Event] = []
    with pytest.raises(SettingsError, match="already finished"):
        runs.resume(run.path, {}, {}, show=seen.append, record=small.record)
    warnings = [event.message for event in seen if isinstance(event, Notice) and event.level == "warning"]
    assert any(
        "latest.pt is not a cpulm checkpoint" in message and "instead" in message for message in warnings
    )


def test_rates_and_blocks_are_those_of_the_settings(run: RunDir) -> None:
    """A kernel divides a matrix by ``block_rows``; a file must not choose them."""

    def change(record: Record) -> None:
        for optimizer in record["optimizers"]:
            for group in optimizer["param_groups"]:
                group.update(block_rows=10**9, betas=(7.0, 7.0), eps=-1.0, weight_decay=-3.0, momentum=9.0)

    crafted(run, lambda record: None)
    runs.resume(run.latest, {"steps": 4}, {}, show=lambda _: None, record=small.record)
    honest = small.course(run.latest)
    crafted(run, change)
    runs.resume(run.latest, {"steps": 4}, {}, show=lambda _: None, record=small.record)
    assert small.equal(small.course(run.latest)["model"], honest["model"])
    assert small.equal(small.course(run.latest)["optimizers"], honest["optimizers"])
