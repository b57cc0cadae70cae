"""``cpulm summary``: how a run went, on one page. Hidden: the scripts beside the package show it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def summary(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
) -> None:
    """Write a run's summary to its `summary.md`, and print it."""
    from cpulm import run_dir
    from cpulm.overnight.summary import write_summary
    from cpulm.ui.console import write_text

    write_text(write_summary(run_dir.find(run)))
