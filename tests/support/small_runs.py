"""Complete runs on a small text, for tests of different aspects."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.events import Event, StepDone
from cpulm.runlog.truncate import truncate_after
from cpulm.runlog.writer import MetricsWriter
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.training import run as runs

SMALL = [
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "model.dropout=0.1",
    "data.tokenizer=byte",
    "data.vocab_size=null",
    "train.micro_batch_size=4",
    "train.warmup_steps=2",
    "train.steps=12",
    "eval.every=5",
    "sample.max_new_tokens=4",
    "runtime.compile=off",
    "runtime.threads=1",
]


def settings_for(text: Path, *more: str) -> Settings:
    """In the precision of the suite, which stands in the environment (``tests/conftest.py``)."""
    return resolve(environ=os.environ, assignments=[*SMALL, f"data.source={text}", *more])


@contextmanager
def record(begins: runs.RecordStart) -> Iterator[Any]:
    truncate_after(begins.run.metrics, begins.step, begins.saves)
    with MetricsWriter(begins.run.metrics, pytest.fail) as writer:
        yield writer


def train(
    settings: Settings, out: Path, stop_at: int | None = None, seen: list[Event] | None = None
) -> tuple[list[Event], runs.RunOutcome]:
    """Train; with ``stop_at`` the process gets Ctrl-C after that step, as from a terminal."""
    seen = [] if seen is None else seen

    def interrupt(step: int) -> None:
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)

    return seen, runs.train(settings, out, show=watching(interrupt, seen), record=record)


def watching(after_step: Callable[[int], None], seen: list[Event]) -> Callable[[Event], None]:
    """A listener that keeps every event in ``seen`` and calls ``after_step`` with each step's number."""

    def show(event: Event) -> None:
        seen.append(event)
        if isinstance(event, StepDone):
            after_step(event.step)

    return show


def resume(path: Path, **horizon: Any) -> tuple[list[Event], runs.RunOutcome]:
    seen: list[Event] = []
    return seen, runs.resume(path, horizon, {}, show=seen.append, record=record)


def of(kind: type[Any], events: Iterable[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def weights(path: Path) -> Mapping[str, torch.Tensor]:
    return checkpoints.load(path).model_state


def same(a: Path, b: Path) -> bool:
    first, second = checkpoints.load(a), checkpoints.load(b)
    states = json.dumps([s["param_groups"] for s in first.optimizer_states], default=str)
    other = json.dumps([s["param_groups"] for s in second.optimizer_states], default=str)
    tensors = all(
        torch.equal(first.model_state[name], second.model_state[name]) for name in first.model_state
    )
    return tensors and states == other and first.step == second.step
