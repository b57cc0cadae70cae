"""A small run as events, which every output must be able to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import small_events
from small_events import START

from cpulm.events import (
    CheckpointSaved,
    Event,
    MachineSampled,
    Notice,
    Progress,
    RunFinished,
    RunStarted,
    SampleMade,
    StepDone,
    Validated,
)

SAMPLE = 'read(path):\n\t"""Return the text."""\n    return \x1b[31mopen(path)\x07 日本語 [bold]x[/bold]\n'


def run_started(time: float = START, step: int = 0, steps: int | None = 100) -> RunStarted:
    return small_events.run_started(
        time=time,
        step=step,
        steps=steps,
        max_time_seconds=None if steps else 600.0,
        device_name="Intel(R) Xeon(R) CPU @ 2.50GHz",
        params_total=3_152_000,
        params_non_embedding=2_103_000,
        tokens_per_step=4096,
        flops_per_token=1.9e7,
        train_tokens=3_400_000,
        val_tokens=180_000,
        vocab_size=4096,
        block_size=256,
        notes=("eager: no C++ compiler was found",),
    )


def step_done(step: int, loss: float, time: float = START, seconds: float = 0.5) -> StepDone:
    return StepDone(
        time=time,
        step=step,
        loss=loss,
        lr=2e-3,
        grad_norm=0.8125,
        tokens=4096 * step,
        epoch=step * 4096 / 3_400_000,
        elapsed_seconds=step * seconds,
        step_seconds=seconds,
        data_seconds=0.001,
        progress=min(1.0, step / 100),
    )


def run_events(steps: int = 100, seconds: float = 0.5) -> Iterator[Event]:
    """A run of ``steps`` updates with a validation, a checkpoint and a sample after every 40."""
    time = START
    for done in range(0, 11):
        yield Progress(
            time=time, stage="tokenizing", done=done * 1e6, total=1e7, unit="bytes", finished=done == 10
        )
        time += 0.5
    yield run_started(time, steps=steps)
    yield Notice(time=time, level="info", message="fp32 on 2 threads")
    best = math.inf
    for step in range(1, steps + 1):
        time += seconds
        loss = 2 + 7 * math.exp(-step / 15) + 0.1 * math.sin(step)
        yield step_done(step, loss, time, seconds)
        if step % 10 == 0:
            yield MachineSampled(
                time=time,
                cpu_percent=97.0,
                process_cpu_percent=91.0,
                cpu_mhz=2500.0,
                cpu_temperature=61.0,
                process_bytes=812 * 2**20,
                memory_used_bytes=3 * 2**30,
                memory_total_bytes=8 * 2**30,
            )
        if step % 40 == 0:
            yield Progress(time=time, stage="validating", done=4, total=4, unit="batches", finished=True)
            yield Validated(
                time=time,
                step=step,
                loss=loss + 0.1,
                perplexity=math.exp(loss + 0.1),
                bits_per_byte=(loss + 0.1) / math.log(2) / 3.2,
                tokens=180_000,
                seconds=1.0,
                whole=True,
                best=loss + 0.1 < best,
            )
            best = min(best, loss + 0.1)
            yield CheckpointSaved(
                time=time, step=step, path="runs/tiny-1/best.pt", role="best", bytes=38 * 2**20, seconds=0.2
            )
            yield SampleMade(time=time, step=step, prompt="def ", text=SAMPLE)
    yield Notice(time=time, level="warning", message="the disk is nearly full [not markup]")
    yield RunFinished(
        time=time,
        step=steps,
        tokens=4096 * steps,
        reason="horizon",
        elapsed_seconds=steps * seconds,
        estimated_seconds=steps * seconds,
        best_loss=best,
        best_step=80,
        best_bits_per_byte=best / math.log(2) / 3.2,
        tokens_per_second=4096 / seconds,
        checkpoint="runs/tiny-1/best.pt",
    )


@pytest.fixture
def events() -> list[Event]:
    return list(run_events())


@pytest.fixture
def started() -> Callable[..., RunStarted]:
    return run_started


@pytest.fixture
def step() -> Callable[..., StepDone]:
    return step_done
