"""What the processes of a run agree on: a stop ends all at one update, and the main one's clock counts."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from small_runs import settings_for
from torch import Tensor
from worlds import in_world

from cpulm.distributed.world import World
from cpulm.events import Event, StepDone
from cpulm.interrupts import StopRequest
from cpulm.run_dir import RunDir
from cpulm.training.build import build_parts, build_trainer
from cpulm.training.prepare_run import PreparedRun, prepare_run

DILOCO = ("distributed.mode=diloco", "train.outer_steps=4", "train.average_fraction=0.5")


def test_what_is_true_in_one_process_is_true_in_all_and_the_values_are_the_main_ones() -> None:
    found: dict[int, list[tuple[bool, tuple[float, ...]]]] = {}

    def agree(world: World) -> None:
        first = world.start_agree(world.rank == 2, 0.5 + world.rank, 8.0)
        second = world.start_agree(False, 1.5 + world.rank)  # before the first is answered
        world.sum(torch.ones(3))
        found[world.rank] = [first.wait(), second.wait(), world.agree(world.rank == 0, 2.5 + world.rank)]

    in_world(3, agree)
    assert found[0] == [(True, (0.5, 8.0)), (False, (1.5,)), (True, (2.5,))]
    assert found[0] == found[1] == found[2]


@dataclass
class Ended:
    """How a process's training ended, its weights and their average, and the learning rate of each update."""

    reason: str = ""
    step: int = 0
    weights: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def trained(
    ready: PreparedRun, folder: Path, stops: int | None = None, stops_after: int = 0, gone: float = 0.0
) -> list[Ended]:
    """Train in two processes; the process ``stops`` is stopped after the update ``stops_after``.

    Args:
        gone: seconds that the command of the second process has run for longer.
    """
    ended, one_at_a_time = [Ended(), Ended()], threading.Lock()

    def train(world: World) -> None:
        mine, stop = ended[world.rank], StopRequest()

        def emit(event: Event) -> None:
            if isinstance(event, StepDone):
                mine.rates.append(event.lr)
                if world.rank == stops and event.step == stops_after:
                    stop.request("the user")

        if world.rank == stops and stops_after == 0:
            stop.request("the user")
        with one_at_a_time:  # torch has one random state
            parts = build_parts(ready.settings, ready.tokens, ready.runtime, world=world)
        trainer = build_trainer(
            ready.settings,
            ready.tokens,
            parts,
            ready.runtime,
            RunDir(folder / str(world.rank)),
            emit=emit,
            stop=stop,
            began=time.monotonic() - gone * world.rank,
            step_seconds=0.0,
            world=world,
        )
        trainer.prepare()
        mine.reason = trainer.train()
        mine.step, mine.weights = trainer.state.step, list(trainer.parts.model.state_dict().values())
        if trainer.parts.average is not None:
            mine.weights += trainer.parts.average.state_dict().values()

    in_world(2, train)
    return ended


def ready(tmp_path: Path, *more: str) -> PreparedRun:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{n} and {n + 1} are {2 * n + 1}." for n in range(400)))
    settings = settings_for(text, "model.dropout=0", "train.steps=12", "eval.every=50", *more)
    return prepare_run(settings, show=lambda _: None, should_stop=StopRequest())


@pytest.mark.parametrize("stops", [0, 1])
@pytest.mark.parametrize(
    ("mode", "after", "ends"),
    [((), 0, 0), ((), 5, 6), (DILOCO, 0, 0), (DILOCO, 5, 8)],
    ids=["at once", "next update", "diloco, at once", "end of the round"],
)
def test_a_stop_in_one_process_ends_all_at_one_update(
    tmp_path: Path, stops: int, mode: tuple[str, ...], after: int, ends: int
) -> None:
    one, other = trained(ready(tmp_path, *mode), tmp_path, stops, after)
    assert [one.reason, other.reason] == ["stopped", "stopped"]
    assert [one.step, other.step] == [ends, ends]
    assert all(torch.equal(*pair) for pair in zip(one.weights, other.weights, strict=True))


def test_the_learning_rate_follows_the_clock_of_the_main_process(tmp_path: Path) -> None:
    more = ("train.steps=null", "train.max_time=1h", "train.schedule=linear", "train.warmup_steps=0")
    one, other = trained(ready(tmp_path, *more), tmp_path, stops=0, stops_after=5, gone=1800.0)
    assert len(one.rates) == 6
    assert one.rates == other.rates
