"""Runs that train adapters beside the frozen weights of a trained model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from small_runs import of, resume, same, settings_for, train, weights

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.load_model import best_checkpoint, load_model
from cpulm.checkpoints.strip import keep_weights_alone
from cpulm.errors import DataError, SettingsError
from cpulm.events import LayerStats, Notice, RunStarted, Validated
from cpulm.model.lora import MARK, merged
from cpulm.pretrained.peft_adapter import CONFIG, WEIGHTS
from cpulm.run_dir import RunDir
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.training.initial import initial_settings, read_initial
from cpulm.units import format_count

OTHER = "pack my box with five dozen liquor jugs. " * 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text")
    (path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    (path / "other.txt").write_text(OTHER)
    train(settings_for(path / "text.txt", "train.steps=60", "eval.every=60"), path / "first")
    return path


def begun_with(folder: Path, *more: str) -> Settings:
    """The settings of a run with adapters on ``first``, as ``cpulm train`` resolves them."""
    few = ("train.micro_batch_size=4", "train.warmup_steps=2", "train.steps=12", "eval.every=6")
    given = [*few, "runtime.threads=1", "runtime.compile=off", "sample.max_new_tokens=4", "lora.rank=2"]
    given += [f"train.init_from={folder / 'first'}", f"data.source={folder / 'other.txt'}", *more]
    initial = initial_settings(read_initial(str(folder / "first"), lambda _: None), adapters=True)
    return resolve("4x192", environ=os.environ, assignments=given, initial=initial)


def test_adapters_learn_beside_weights_that_stay(folder: Path, tmp_path: Path) -> None:
    settings = begun_with(folder, "train.steps=60", "eval.every=20", "train.lr=0.01")
    seen, _ = train(settings, tmp_path / "run")
    losses = [event.loss for event in of(Validated, seen)]
    assert losses[-1] < losses[0] - 0.03
    before = best_checkpoint(folder / "first", pytest.fail)[0].weights
    after = weights(tmp_path / "run" / "latest.pt")
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    adapters = [name for name in after if MARK in name]
    assert len(adapters) == 2 * 2 * 7
    trained = format_count(sum(after[name].numel() for name in adapters))
    said = [notice.message for notice in of(Notice, seen) if notice.message.startswith("begins with the")]
    assert said[0].endswith(f", which stay as they are: it trains {trained} in adapters of rank 2")
    assert of(LayerStats, seen)[0].names == tuple(adapters)
    assert of(RunStarted, seen)[0].params_total == sum(value.numel() for value in before.values())


def test_what_uses_a_model_gets_it_with_its_adapters_merged(folder: Path, tmp_path: Path) -> None:
    train(begun_with(folder, "lora.projections=[q, v]", "train.lr=0.02"), tmp_path / "run")
    best = checkpoints.load(tmp_path / "run" / "best.pt")
    model, _, loaded = load_model(tmp_path / "run", warn=pytest.fail)
    expected = merged(best.weights, best.settings.model, best.settings.lora)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert loaded.settings.lora.rank == 0
    before = weights(folder / "first" / "latest.pt")
    rows = model.settings.n_head * model.settings.head_width
    qkv = "blocks.0.attn.qkv.weight"
    moved = (model.state_dict()[qkv] - best.weights[qkv]).abs().amax(1)
    assert (moved[:rows] > 0).all()
    assert (moved[rows : 2 * rows] == 0).all()
    assert before.keys() == expected.keys()
    run = RunDir(tmp_path / "run")
    assert {file.name for file in run.adapter.iterdir()} == {CONFIG, WEIGHTS}
    assert json.loads((run.adapter / CONFIG).read_text())["base_model_name_or_path"] == str(folder / "first")
    assert run.wrote(run.adapter.name)
    keep_weights_alone(run)
    for name, value in load_model(tmp_path / "run", warn=pytest.fail)[0].state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("more", [(), ("train.average_fraction=0.5",), ("train.grad_accum_steps=2",)])
def test_a_resumed_run_is_the_uninterrupted_one(folder: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    settings = begun_with(folder, *more)
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "part", stop_at=5)
    resume(tmp_path / "part")
    assert same(tmp_path / "whole" / "latest.pt", tmp_path / "part" / "latest.pt")


def test_a_checkpoint_of_adapters_is_smaller_than_one_of_all_weights(folder: Path, tmp_path: Path) -> None:
    train(begun_with(folder, "lora.projections=[q]"), tmp_path / "run")
    saved = checkpoints.load(tmp_path / "run" / "latest.pt")
    moments = [value for state in saved.optimizer_states for value in state["state"].values()]
    trained = {name: value for name, value in saved.model_state.items() if MARK in name}
    assert len(moments) == len(trained) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("train.optimizer=muon", "train.optimizer = 'muon': adapters are trained by adamw"),
        ("train.init_from=null", "lora.rank = 2 needs a model to begin with"),
        ("lora.projections=[query]", "lora.projections"),
        ("lora.rank=-1", "lora.rank"),
        ("model.mlp=gelu", "model.mlp = 'gelu' does not fit"),
    ],
)
def test_what_adapters_cannot_be_is_refused(folder: Path, tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message.replace("[", r"\[")):
        train(begun_with(folder, more), tmp_path / "run")


def test_tokens_that_the_model_lacks_cannot_be_learned_by_adapters(folder: Path, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"}]
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps({'messages': talk})}\n" * 40)
    given = (f"data.source={tmp_path / 'chats.jsonl'}", "data.chat=true", "data.val_fraction=0.2")
    with pytest.raises(
        SettingsError, match=r"adapters cannot learn .*<\|assistant\|>.* new in the vocabulary"
    ):
        train(begun_with(folder, *given), tmp_path / "run")


def test_a_projection_that_a_block_lacks_is_refused() -> None:
    shape = ["lora.rank=2", "train.init_from=model", "model.mlp=gelu"]
    with pytest.raises(
        SettingsError, match=r"lora\.projections has gate, and a block of this model has none"
    ):
        resolve(assignments=[*shape, "lora.projections=[up, gate]"])
    assert resolve(assignments=[*shape, "lora.projections=up"]).lora.projections == ["up"]


def test_adapters_that_do_not_fit_the_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    train(begun_with(folder), tmp_path / "run")
    crafted = checkpoints.load(tmp_path / "run" / "best.pt")
    state = dict(crafted.model_state)
    a, b = (f"blocks.0.attn.qkv{MARK}q.{matrix}" for matrix in "ab")
    state[a], state[b] = torch.zeros(1, 32), torch.zeros(b_rows := len(state[b]), 2)
    assert b_rows == 16
    crafted.model_state = state
    checkpoints.save(crafted, tmp_path / "crafted.pt")
    with pytest.raises(DataError, match="do not fit each other: adapters"):
        load_model(tmp_path / "crafted.pt", warn=pytest.fail)
