"""The small run of the soak tests, and the checks on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cpulm.cache_dir import cache_folder
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.events import Event, Listener, StepDone, from_json
from cpulm.run_dir import RunDir
from cpulm.runlog.truncate import truncate_after
from cpulm.runlog.writer import MetricsWriter
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.training import run as runs

SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "model.dropout=0.1",
    "data.tokenizer=byte",
    "data.vocab_size=null",
    "train.micro_batch_size=4",
    "train.steps=24",
    "eval.every=6",
    "eval.batches=2",
    "sample.max_new_tokens=4",
    "checkpoint.every_steps=1",
    "runtime.compile=off",
    "runtime.threads=1",
    "runtime.allow_sleep=true",
)
"""Seconds long, with dropout for the random state, and a checkpoint after every step."""


def own_cache(folder: Path) -> None:
    """Have this process and those that it starts cache in ``folder``, with the kernels compiled already."""
    kernels = (cache_folder() / "kernels").absolute()
    folder.mkdir()
    if kernels.is_dir():
        (folder / "kernels").symlink_to(kernels, target_is_directory=True)
    os.environ["CPULM_CACHE"] = str(folder)


def write_text(folder: Path) -> Path:
    """A text of 14 KB to learn from, in ``folder``."""
    path = folder / "rhyme.txt"
    lines = (f"{number} cats sat on the mat; the rat saw {number} cats and ran.\n" for number in range(250))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def assignments(text: Path, *more: str) -> list[str]:
    """The settings of the small run as ``--set`` takes them; ``more`` stands above them."""
    return [*SMALL, f"data.source={text}", *more]


def settings_for(text: Path, *more: str) -> Settings:
    """The small run's settings."""
    return resolve(assignments=assignments(text, *more))


def train(settings: Settings, out: Path, show: Listener = lambda _: None) -> runs.RunOutcome:
    """Train in this process, with a log, as ``cpulm train`` does."""
    return runs.train(settings, out, show=show, record=record)


def resume(out: Path, show: Listener = lambda _: None) -> runs.RunOutcome:
    """Resume in this process, as ``cpulm resume`` does."""
    return runs.resume(out, {}, {}, show=show, record=record)


@contextmanager
def record(begins: runs.RecordStart) -> Iterator[Listener]:
    truncate_after(begins.run.metrics, begins.step, begins.saves)
    with MetricsWriter(begins.run.metrics, on_problem=lambda _: None) as writer:
        yield writer


def course(checkpoint: Path) -> dict[str, Any]:
    """The parts of a checkpoint that determine its run: weights, optimizer, random state, position."""
    record = checkpoints.load(checkpoint)
    return {
        "model": record.model_state,
        "optimizers": record.optimizer_states,
        "random": record.random_state,
        "place": (record.step, record.state.tokens, record.state.best_loss),
    }


def equal(one: Any, other: Any) -> bool:
    """Whether two nested structures are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def recorded_steps(run: RunDir) -> list[int]:
    """The steps in the run's log, in order; a damaged line is an error."""
    events = [from_json(line) for line in run.metrics.read_bytes().splitlines()]
    return [event.step for event in events if isinstance(event, StepDone)]


def unreadable(run: RunDir) -> list[str]:
    """The checkpoints with a final name that are not intact."""
    damaged = []
    for path in run.checkpoints():
        try:
            checkpoints.load(path)
        except Exception as error:
            damaged.append(f"{path.name}: {error}")
    return damaged


def newest_step(run: RunDir) -> int | None:
    """The step from which ``cpulm resume`` would continue; None if there is none."""
    steps = [checkpoints.load(path).step for path in run.checkpoints()[:1]]
    return steps[0] if steps else None


def at_steps(what: dict[int, Callable[[], None]], seen: list[Event]) -> Listener:
    """A listener that keeps the events and calls a function once after each of some steps."""
    left = dict(what)

    def show(event: Event) -> None:
        seen.append(event)
        if event.kind == "step":
            left.pop(getattr(event, "step", 0), lambda: None)()

    return show
