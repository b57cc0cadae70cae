"""Events of a small run, for synthetic run logs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cpulm.events import CheckpointSaved, EndReason, RunFinished, RunStarted, StepDone, Validated

START = 1_700_000_000.0


def run_started(**changes: Any) -> RunStarted:
    """Of a small new run; ``changes`` are the fields that a test is about."""
    event = RunStarted(
        time=START,
        run="runs/tiny-1",
        name="tiny-1",
        preset="tiny",
        version="0.1.0",
        step=0,
        steps=100,
        max_time_seconds=None,
        device="cpu",
        device_name="Xeon",
        precision="fp32",
        compiled=False,
        threads=2,
        params_total=3000,
        params_non_embedding=2000,
        tokens_per_step=64,
        flops_per_token=1e4,
        train_tokens=10_000,
        val_tokens=1000,
        vocab_size=256,
        block_size=16,
    )
    return replace(event, **changes)


def step_done(step: int, **changes: Any) -> StepDone:
    """One update of a run that takes a second for each."""
    event = StepDone(
        time=START + step,
        step=step,
        loss=2.0,
        lr=1e-3,
        grad_norm=1.0,
        tokens=64 * step,
        epoch=0.1,
        elapsed_seconds=float(step),
        step_seconds=1.0,
        data_seconds=0.0,
        progress=step / 100,
    )
    return replace(event, **changes)


def run_validated(step: int, loss: float, **changes: Any) -> Validated:
    """A validation of the whole split, the best so far."""
    event = Validated(
        time=START + step,
        step=step,
        loss=loss,
        perplexity=1.0,
        bits_per_byte=loss / 2,
        tokens=1000,
        seconds=0.1,
        whole=True,
        best=True,
    )
    return replace(event, **changes)


def checkpoint_saved(step: int, **changes: Any) -> CheckpointSaved:
    """The newest checkpoint."""
    event = CheckpointSaved(
        time=START + step, step=step, path="latest.pt", role="latest", bytes=1, seconds=0.1, saves=1
    )
    return replace(event, **changes)


def run_finished(step: int, reason: EndReason, **changes: Any) -> RunFinished:
    """The end of a run."""
    event = RunFinished(
        time=START + step,
        step=step,
        tokens=64 * step,
        reason=reason,
        elapsed_seconds=float(step),
        estimated_seconds=None,
        best_loss=1.5,
        best_step=20,
        best_bits_per_byte=0.75,
        tokens_per_second=64.0,
        checkpoint=None,
    )
    return replace(event, **changes)
