"""``cpulm resume``: go on with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HOW_LONG, OUTPUT = "New horizon", "Output"


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
    steps: Annotated[
        int | None, typer.Option(help="Optimizer updates, from the very start.", rich_help_panel=HOW_LONG)
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the training text.", rich_help_panel=HOW_LONG)
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Trained tokens.", rich_help_panel=HOW_LONG)] = None,
    max_time: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Time over all parts of the run.", rich_help_panel=HOW_LONG),
    ] = None,
    headless: Annotated[
        bool, typer.Option("--headless", help="Plain lines instead of the dashboard.", rich_help_panel=OUTPUT)
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Events as JSON lines on stdout.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Go on with a run exactly where it was stopped.

    The weights come out bit-identical to those of a run that was never stopped (for a horizon in
    steps, epochs or tokens, with the same number of threads). A damaged checkpoint is named and the
    one before it is used. With a new horizon the run is extended.

    Example: `cpulm resume runs/tiny-1 --steps 4000`
    """
    from cpulm.cli import training

    horizon = {"steps": steps, "epochs": epochs, "tokens": tokens, "max_time": max_time}
    training.go_on(run, horizon, headless=headless, json=json)
