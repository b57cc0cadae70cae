"""Logs of runs with and without problems, for what the analysis must and must not find."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from small_events import run_started

from cpulm.events import (
    EndReason,
    Event,
    MachineSampled,
    RunFinished,
    RunStarted,
    StepDone,
    Validated,
    to_json,
)

TOKENS = 2048


class MakeRun(Protocol):
    """Writes a run's folder; see :func:`make_run`."""

    def __call__(self, *name: Any, **how: Any) -> Path: ...


def started(**changes: Any) -> RunStarted:
    """The beginning of a run of 400 steps on enough text."""
    values: dict[str, Any] = {"run": "runs/run", "name": "run", "preset": "none", "steps": 400}
    values |= {"tokens_per_step": TOKENS, "train_tokens": 4_000_000}
    return run_started(**{**values, **changes})


def falling(step: int) -> float:
    """The loss of a run that learns as runs do: a power law of the tokens."""
    return 1.5 + 6.0 * math.pow(step, -0.35)


def one(step: int) -> float:
    return 1.0


def thousandth(step: int) -> float:
    return 1e-3


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes the record of a run; every part of it is a function of the step.

    Options: ``steps``, ``loss``, ``noise`` (nats), ``val_loss``, ``lr``, ``grad_norm``, ``step_seconds``,
    ``machine`` (fields of MachineSampled by step), ``every`` (steps between validations), ``beginning``
    (fields of RunStarted), ``more`` (events behind a step), ``settings`` (the text of settings.yaml) and
    ``reason``, that of the end, or None for a record without an end.
    """

    def make(
        name: str = "run",
        *,
        steps: int = 400,
        loss: Callable[[int], float] = falling,
        noise: float = 0.05,
        val_loss: Callable[[int], float] = falling,
        lr: Callable[[int], float] = thousandth,
        grad_norm: Callable[[int], float] = one,
        step_seconds: Callable[[int], float] = one,
        machine: Callable[[int], dict[str, Any]] = lambda step: {},
        every: int = 40,
        beginning: dict[str, Any] | None = None,
        more: Callable[[int, float], list[Event]] = lambda step, time: [],
        settings: str = "preset: ''\n",
        reason: EndReason | None = "horizon",
    ) -> Path:
        draw = np.random.default_rng(0)
        begins = started(**{"steps": steps, "name": name, **(beginning or {})})
        events: list[Event] = [begins]
        now, elapsed = begins.time, 0.0
        for step in range(1, steps + 1):
            now += step_seconds(step)
            elapsed += step_seconds(step)
            events.append(
                StepDone(
                    time=now,
                    step=step,
                    loss=loss(step) + noise * float(draw.standard_normal()),
                    lr=lr(step),
                    grad_norm=grad_norm(step),
                    tokens=TOKENS * step,
                    epoch=TOKENS * step / begins.train_tokens,
                    elapsed_seconds=elapsed,
                    step_seconds=step_seconds(step),
                    data_seconds=0.001,
                    progress=step / steps,
                )
            )
            if step % 4 == 0:
                events.append(machine_sampled(now, **machine(step)))
            if step % every == 0:
                events.append(validated(step, now, val_loss(step)))
            events += more(step, now)
        if reason is not None:
            events.append(finished(steps, now, reason))
        return write_run(tmp_path / name, events, settings)

    return make


def write_run(folder: Path, events: Sequence[Event], settings: str) -> Path:
    """A run's folder with this record; ``settings`` is the text of settings.yaml."""
    folder.mkdir()
    (folder / "settings.yaml").write_text(settings, encoding="utf-8")
    lines = "".join(to_json(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder


def machine_sampled(time: float, **changes: Any) -> MachineSampled:
    values: dict[str, Any] = {
        "cpu_percent": 99.0,
        "process_cpu_percent": 97.0,
        "cpu_mhz": 3900.0,
        "cpu_temperature": 60.0,
        "process_bytes": 2**29,
        "memory_used_bytes": 2**31,
        "memory_total_bytes": 2**33,
    }
    return MachineSampled(time=time, **{**values, **changes})


def validated(step: int, time: float, loss: float, bytes_per_token: float = 2.0) -> Validated:
    return Validated(
        time=time,
        step=step,
        loss=loss,
        perplexity=math.exp(loss),
        bits_per_byte=loss / math.log(2) / bytes_per_token,
        tokens=1000,
        seconds=0.5,
        whole=True,
        best=True,
    )


def finished(step: int, time: float, reason: EndReason) -> RunFinished:
    return RunFinished(
        time=time,
        step=step,
        tokens=TOKENS * step,
        reason=reason,
        elapsed_seconds=float(step),
        estimated_seconds=None,
        best_loss=None,
        best_step=None,
        best_bits_per_byte=None,
        tokens_per_second=float(TOKENS),
        checkpoint=None,
    )
