"""``cpulm supervise``, hidden: the process that watches an overnight run; ``--overnight`` starts it.

Users' systemd units, launchd agents and scheduled tasks name this subcommand with ``--at-boot``: neither name
may change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def supervise(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENT", help="Further arguments of train or resume.")
    ] = None,
    at_boot: Annotated[
        bool, typer.Option("--at-boot", help="Continue an interrupted run, if there is one.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Train a new run instead of resuming one.")] = False,
    log: Annotated[
        Path | None, typer.Option("--log", help="The log until the run has begun.", show_default=False)
    ] = None,
) -> None:
    """Start a run, and start it again after a crash, until it has ended."""
    from cpulm.overnight import supervisor
    from cpulm.run_dir import RunDir

    if at_boot:
        watching = supervisor.at_boot(RunDir(run.resolve()))
    else:
        there = RunDir(run)
        watching = supervisor.supervise(there, log or there.supervisor_log, arguments or [], new=new)
    if watching is not None:
        code = watching.run()
        raise typer.Exit(code if code >= 0 else 128 - code)
