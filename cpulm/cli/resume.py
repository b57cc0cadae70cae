"""``cpulm resume``: go on with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cpulm.cli.options import (
    AllowSleep,
    CheckpointEvery,
    Epochs,
    Headless,
    Json,
    MaxTime,
    Nice,
    Overnight,
    PauseOnBattery,
    Steps,
    Tokens,
    Until,
    conduct,
    horizon,
)

OUTPUT = "Output"


def complete_run(incomplete: str) -> list[str]:
    """Folders of runs that begin with what was typed."""
    runs = sorted(path.parent.as_posix() for path in Path("runs").glob("*/settings.yaml"))
    return [run for run in runs if run.startswith(incomplete)]


def resume(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            autocompletion=complete_run,
            help="A run's folder, or a checkpoint file in it.",
            show_default=False,
        ),
    ],
    steps: Steps = None,
    epochs: Epochs = None,
    tokens: Tokens = None,
    max_time: MaxTime = None,
    until: Until = None,
    checkpoint_every: CheckpointEvery = None,
    overnight: Overnight = False,
    nice: Nice = None,
    allow_sleep: AllowSleep = None,
    pause_on_battery: PauseOnBattery = None,
    headless: Headless = False,
    json: Json = False,
) -> None:
    """Go on with a run exactly where it was stopped.

    The weights come out bit-identical to those of a run that was never stopped (for a horizon in
    steps, epochs or tokens, with the same number of threads). A damaged checkpoint is named and the
    one before it is used. With a new horizon the run is extended.

    Example: `cpulm resume runs/tiny-1 --steps 4000`
    """
    from cpulm.cli import run_training

    changes = conduct(checkpoint_every, nice, allow_sleep, pause_on_battery)
    end = horizon(steps, epochs, tokens, max_time, until)
    run_training.go_on(run, end, changes, headless=headless, json=json, overnight=overnight)
