"""Rounds without exchange: whose rows, the average in few bytes, and whole runs that resume bit for bit."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from ranks import ranks
from small_runs import SMALL, settings_for, train, weights
from worlds import in_world

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.data.batch_pieces import BatchPiece
from cpulm.data.loader import Loader
from cpulm.distributed.rounds import OwnRows, WeightedAverage, divided
from cpulm.distributed.world import World
from cpulm.events import CheckpointSaved, Validated, from_json
from cpulm.settings import Settings
from cpulm.settings.distributed_settings import Compression
from cpulm.training.low_traffic import OwnStates


@pytest.mark.parametrize(
    ("rows", "speeds", "shares"),
    [
        (16, [1.0, 1.0], [8, 8]),
        (5, [1.0, 1.0], [3, 2]),
        (16, [3.0, 1.0], [12, 4]),
        (4, [99.0, 1.0], [3, 1]),
        (3, [5.0, 0.0, 1.0], [1, 1, 1]),
        (10, [1.0, 2.0, 2.0], [2, 4, 4]),
    ],
)
def test_rows_are_divided_by_speed_and_none_goes_without(
    rows: int, speeds: list[float], shares: list[int]
) -> None:
    assert divided(rows, speeds) == shares


def test_the_processes_have_all_rows_once() -> None:
    pieces = [OwnRows(World(rank, 3), [], 8, by_speed=False).pieces([4, 9], 4) for rank in range(3)]
    assert pieces == [
        [BatchPiece(4, 0, 3)],
        [BatchPiece(4, 3, 4), BatchPiece(9, 0, 2)],
        [BatchPiece(9, 2, 4)],
    ]


def test_a_process_has_the_gradient_of_the_mean_over_its_own_rows() -> None:
    loader = Loader(torch.arange(100).numpy().astype("uint16"), 4, 4, seed=0)
    weight = torch.nn.Parameter(torch.tensor(1.0))
    own = OwnRows(World(1, 2), [weight], 4, by_speed=False)
    total = 0.0
    for piece in own.pieces([0], 4):
        inputs, _, share = piece.load(loader)
        loss = (weight * inputs.float()).mean() * share
        loss.backward()
        total += loss.item()
    mean = loader.batch(0)[0][2:].float().mean().item()
    assert own.sum([total]) == [pytest.approx(mean)]
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(mean)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", ["none", "bf16", "int8", "int2"])
def test_all_get_the_same_average_and_over_the_rounds_the_true_one(size: int, kind: Compression) -> None:
    rounds, shapes, sizes = 20, [(30, 30), (100,)], [1.0, 1e-4]
    shares = torch.tensor([1.0, 2.0, 3.0])[:size]
    shares /= shares.sum()
    generator = torch.Generator().manual_seed(0)
    values = [
        large * torch.randn(rounds, size, *shape, generator=generator)
        for shape, large in zip(shapes, sizes, strict=True)
    ]
    truth = [(one * shares.view(-1, *[1] * (one.ndim - 2))).sum(1) for one in values]
    found = [torch.zeros(size, rounds, *shape) for shape in shapes]
    lost = [torch.zeros(size, *shape) for shape in shapes]

    def average(world: World) -> None:
        rank, averaged = world.rank, WeightedAverage(world, kind)
        for number in range(rounds):
            mine = [one[number, rank].clone() for one in values]
            sums = averaged(mine, float(shares[rank]), [one[rank] for one in lost])
            for kept, one in zip(found, sums, strict=True):
                kept[rank, number] = one

    in_world(size, average)
    for one, left, true, large in zip(found, lost, truth, sizes, strict=True):
        assert all(torch.equal(one[0], other) for other in one)
        torch.testing.assert_close(one[0].sum(0) + left.sum(0), true.sum(0), rtol=1e-4, atol=1e-4 * large)
        error = (one[0] - true).abs().max().item() / large
        assert error < {"none": 1e-6, "bf16": 0.05, "int8": 0.1, "int2": 4.0}[kind]
        assert left.any() == (kind != "none")


def test_shares_follow_the_speeds_of_the_last_round_if_they_may() -> None:
    found = {}

    def divide(world: World) -> None:
        for by_speed in (False, True):
            own = OwnRows(world, [], 12, by_speed=by_speed)
            own.note(seconds=1.0 if world.rank else 3.0)  # for six rows each
            own.divide()
            found[world.rank, by_speed] = own.shares, own.part

    in_world(2, divide)
    assert found[0, False] == found[1, False] == ([6, 6], 0.5)
    assert found[0, True] == ([3, 9], 0.25)
    assert found[1, True] == ([3, 9], 0.75)


DILOCO = (
    *("distributed.mode=diloco", "train.outer_steps=5", "train.steps=13", "checkpoint.every_steps=1"),
    *("train.schedule=constant", "train.warmup_steps=0", "eval.every=7"),
    *("train.outer_lr=0.7", "train.outer_momentum=0.6", "train.average_fraction=0.5"),
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    return path


def options(*more: str) -> list[str]:
    return ["--headless", *(word for one in (*SMALL, *DILOCO, *more) for word in ("--set", one))]


def test_without_other_processes_the_rounds_are_those_of_the_outer_step(text: Path, tmp_path: Path) -> None:
    finals = []
    for name, more in (("alone", DILOCO[1:]), ("diloco", DILOCO)):
        train(settings_for(text, *more, "train.steps=20"), tmp_path / name)
        finals.append(weights(tmp_path / name / "latest.pt"))
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_two_processes_meet_at_the_borders_and_a_resumed_run_is_bit_identical(
    text: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = ranks(tmp_path, 2, "train", str(text), f"--out={whole}", *options())
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    ranks(tmp_path, 2, "train", str(text), "--out=parts", *options("train.steps=5"))
    kept = checkpoints.load(parts / "latest.pt")
    assert any(state["lost"].any() for state in kept.optimizer_states[-1]["state"].values())
    elsewhere = tmp_path / "elsewhere"  # where no process finds states of its own
    shutil.copytree(parts, elsewhere)
    done = ranks(tmp_path, 2, "resume", str(elsewhere), "--steps=6", "--headless")
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    assert "process 2 of 2: optimizers continue from those of the main process" in done[0].stderr
    done = ranks(tmp_path, 2, "resume", str(parts), "--steps=13", "--headless")
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    assert "not exact" not in done[0].stderr
    first, second = (checkpoints.load(run / "latest.pt") for run in (whole, parts))
    for one, other in (
        (first.model_state, second.model_state),
        (first.average_state, second.average_state),
    ):
        assert one.keys() == other.keys() == first.model_state.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    events = [from_json(line) for line in (whole / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [one.step for one in events if isinstance(one, Validated)] == [10, 13]  # due after 7
    assert {one.step for one in events if isinstance(one, CheckpointSaved)} == {0, 5, 10, 13}


def test_the_main_process_writes_when_all_others_have_kept_their_states() -> None:
    done: list[str] = []

    def slow() -> Checkpoint:
        time.sleep(0.5)
        done.append("kept")
        raise OSError  # which only makes a resumed run inexact

    def keep(world: World) -> None:
        OwnStates(world, "run").keep(slow)
        if world.is_main:
            done.append("written")

    in_world(2, keep)
    assert done == ["kept", "written"]


def test_rounds_need_a_length() -> None:
    with pytest.raises(ValueError, match=r"set train\.outer_steps, such as 12"):
        Settings.model_validate({"distributed": {"mode": "diloco"}})
