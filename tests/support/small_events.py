"""The first event of a run, as records made by hand begin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cpulm.events import RunStarted

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
