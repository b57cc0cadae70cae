"""``cpulm resume``: continue a run, or a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cpulm.cli import completion
from cpulm.cli.setting_flags import (
    BEHAVIOUR,
    HORIZON,
    HOW_LONG,
    MACHINE,
    OUTPUT,
    PROCESSES,
    TEXT,
    TOGETHER,
    Headless,
    JsonEvents,
    horizon,
    setting_flags,
)
from cpulm.command import typed


@setting_flags(
    {
        HOW_LONG: HORIZON,
        TEXT: ("data", "val_data"),
        MACHINE: BEHAVIOUR,
        PROCESSES: TOGETHER,
        OUTPUT: ("checkpoint_every",),
    }
)
def resume(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            autocompletion=completion.run_or_sweep,
            help="A run's folder, a checkpoint in it, or a sweep's folder.",
            show_default=False,
        ),
    ],
    overnight: Annotated[
        bool,
        typer.Option(
            "--overnight",
            help="Train in the background, even after this terminal is closed; restart after a crash.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    without_teacher: Annotated[
        bool,
        typer.Option(
            "--without-teacher",
            help="Continue from the text alone if the file of the run's teacher is gone or damaged.",
            rich_help_panel=TEXT,
        ),
    ] = False,
    headless: Headless = False,
    json: JsonEvents = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Continue a run exactly where it stopped.

    The weights are bit-identical to those of a run that was never stopped (for a horizon in steps,
    epochs or tokens, with the same number of threads). If the newest checkpoint is damaged, it is named
    and the previous one is used. A new horizon extends the run. The text is needed again only if its
    tokens are no longer in the cache; if it was moved, `--data` gives its new place. A sweep continues as
    planned.

    **Examples**

        cpulm resume runs/tiny-1

        cpulm resume runs/tiny-1 --steps 4000

        cpulm resume sweeps/tiny-1
    """
    from cpulm.cli import run_training
    from cpulm.cli.sweep import continue_sweep, is_sweep

    if is_sweep(run):
        _require_alone(run, flags, others=overnight or without_teacher)
        continue_sweep(run, headless=headless, json=json)
        return
    end = horizon(flags)
    changes = {key: value for key, value in flags.items() if key.removeprefix("train.") not in end}
    run_training.go_on(
        run,
        end,
        changes,
        headless=headless,
        json=json,
        overnight=overnight,
        without_teacher=without_teacher,
    )


def _require_alone(sweep: Path, flags: dict[str, Any], *, others: bool) -> None:
    from cpulm.errors import SettingsError

    if flags or others:
        raise SettingsError(
            f"{sweep} is a sweep, which continues as planned",
            f"leave out the other options: `cpulm resume {typed(sweep)}`",
        )
