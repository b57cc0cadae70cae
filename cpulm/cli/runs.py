"""``cpulm runs``: lists runs with their progress and state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpulm.cli import completion
from cpulm.cli.setting_flags import JsonResult

if TYPE_CHECKING:
    from cpulm.runs.status import RunStatus

RUNS = Path("runs")
"""Where runs are if no folder is given."""

Folders = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FOLDER...",
        autocompletion=completion.run_or_folder,
        help="Folders of runs, or runs. [default: runs]",
        show_default=False,
    ),
]


def runs(
    folders: Folders = None,
    json: JsonResult = False,
) -> None:
    """List runs, newest first: progress, best loss, state, size. Name, prune and delete them.

    `cpulm runs rm` deletes runs, `cpulm runs prune` what they no longer need, and `cpulm runs name` and
    `cpulm runs note` say what a run is.

    States: *running*; *finished*; *stopped* (on purpose, can be resumed); *aborted* (by a second
    Ctrl-C); *diverged*; *out of room* (a
    checkpoint could not be written, or memory ran out); *failed* (by an error); *crashed* (its process
    ended unexpectedly: `cpulm resume` continues it); *restarting* (its overnight supervisor is about to
    start it again); *new* (not started).

    **Examples**

        cpulm runs

        cpulm runs --json | jq -r '.[] | select(.state == "crashed") | .run'
    """
    from cpulm.runs.status import find_runs, status_of
    from cpulm.ui.console import print_json

    default = not folders
    there = [] if default and not RUNS.is_dir() else find_runs(folders or [RUNS])
    standings = sorted((status_of(run) for run in there), key=_newest_first)
    if json:
        print_json(standings)
    elif standings:
        _show(standings)
    else:
        _show_none([RUNS] if default else folders or [])


def _newest_first(one: RunStatus) -> tuple[float, str]:
    return -(one.seen or one.began or 0.0), one.run


def _show(standings: list[RunStatus]) -> None:
    import time

    from cpulm.ui.console import stdout
    from cpulm.ui.runs import RunRow, runs_table

    now = time.time()
    rows = [
        RunRow(
            run=one.run,
            state=one.state,
            step=one.step,
            steps=one.steps,
            progress=one.progress,
            best_loss=one.best_loss,
            best_bits_per_byte=one.best_bits_per_byte,
            text_lost=one.text_lost,
            seconds_ago=None if one.seen is None else max(0.0, now - one.seen),
            preset=one.preset,
            generation=one.generation,
            generations=one.generations,
            disk_bytes=one.disk_bytes,
            label=one.label,
            note=one.note,
        )
        for one in standings
    ]
    console = stdout()
    console.print(runs_table(rows, console.width))


def _show_none(folders: list[Path]) -> None:
    from cpulm.ui.console import stderr

    where = ", ".join(f"{folder}/" for folder in folders)
    stderr().print(f"no runs in {where} yet; start one: `cpulm train --preset tiny`", soft_wrap=True)
