"""``cpulm runs rm``, ``prune``, ``name`` and ``note``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpulm.cli import completion
from cpulm.cli.runs import RUNS, Folders

if TYPE_CHECKING:
    from cpulm.run_dir import RunDir

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...", autocompletion=completion.run, help="Folders of runs.", show_default=False
    ),
]
Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", autocompletion=completion.run, help="The run's folder.", show_default=False
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def rm(runs: Runs, yes: Yes = False) -> None:
    """Delete runs: their checkpoints, logs and reports. What cpulm did not write there stays.

    A run that is being trained is never deleted.

    **Examples**

        cpulm runs rm runs/tiny-1 runs/tiny-2

        cpulm runs rm runs/tiny-1 --yes
    """
    from cpulm.run_dir import disk_bytes
    from cpulm.runs.keeping import delete, require_idle
    from cpulm.ui.console import say, show_warning

    chosen = _found(runs)
    for run in chosen:
        require_idle(run)
    _confirm("delete", [(run.path, disk_bytes(run.path)) for run in chosen], yes=yes)
    for run in chosen:
        left = delete(run)
        if left:
            show_warning(f"{run.path} stays: cpulm did not write {', '.join(left)}")
        else:
            say(f"deleted {run.path}")


def prune(
    runs: Folders = None,
    optimizer_states: Annotated[
        bool,
        typer.Option(
            "--optimizer-states",
            help="Of finished runs keep only the best weights: they cannot be trained any longer.",
        ),
    ] = False,
    yes: Yes = False,
) -> None:
    """Delete what runs no longer need: numbered checkpoints, and the teachers of finished runs.

    `cpulm generate`, `cpulm evaluate` and `cpulm resume` work as before, but no longer from a numbered
    checkpoint. Runs that are being trained are left alone. `cpulm tokenize --prune-cache 30d` deletes tokens
    that no run used for 30 days.

    **Examples**

        cpulm runs prune

        cpulm runs prune runs/tiny-1 --optimizer-states
    """
    from cpulm.run_dir import disk_bytes
    from cpulm.runs.keeping import prunable, remove
    from cpulm.runs.lock import locked
    from cpulm.runs.status import find_runs, is_at_work, is_complete
    from cpulm.ui.console import say
    from cpulm.units import format_bytes

    folders = runs or ([RUNS] if RUNS.is_dir() else [])
    idle = [run for run in find_runs(folders) if not is_at_work(run)]
    files = {run: prunable(run, complete=is_complete(run)) for run in idle}
    stripped = [run for run in idle if optimizer_states and is_complete(run) and run.best.is_file()]
    if not any(files.values()) and not stripped:
        say("nothing to delete")
        return
    concerned = [(path, disk_bytes(path)) for paths in files.values() for path in paths]
    concerned += [(run.latest, disk_bytes(run.latest)) for run in stripped if run.latest.is_file()]
    _confirm("delete", concerned, yes=yes)
    before = sum(disk_bytes(run.path) for run in idle)
    for run in idle:
        with locked(run, to_delete=True):
            for path in files[run]:  # first: the disk may be full
                remove(path)
            if run in stripped:
                from cpulm.checkpoints.strip import keep_weights_alone

                keep_weights_alone(run)
    say(f"{format_bytes(before - sum(disk_bytes(run.path) for run in idle))} freed")


def rename(
    run: Run,
    text: Annotated[str, typer.Argument(metavar="NAME", help="One line; empty to remove it.")],
) -> None:
    """Give a run a name, which `cpulm runs` shows. Its folder stays.

    **Examples**

        cpulm runs name runs/tiny-1 "the diary, second try"
    """
    _label(run, name=text)


def note(
    run: Run,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Any text; empty to remove it.")],
) -> None:
    """Note something about a run, which `cpulm runs` shows.

    **Examples**

        cpulm runs note runs/tiny-1 "dropout 0.2, without the letters"
    """
    _label(run, note=text)


def _label(path: Path, **change: str) -> None:
    """Change the name or the note of a run."""
    from dataclasses import replace

    from cpulm.runs.label import read_label, write_label

    [run] = _found([path])
    write_label(run, replace(read_label(run), **change))


def _found(paths: list[Path]) -> list[RunDir]:
    """The runs that the folders are, each once.

    Raises:
        DataError: if one is not a run.
    """
    from cpulm import run_dir

    return list({path.resolve(): run_dir.find(path) for path in paths}.values())


def _confirm(what: str, files: list[tuple[Path, int]], *, yes: bool) -> None:
    """Say what will be gone, and ask.

    Raises:
        SettingsError: if nobody can be asked.
        AbortedError: if the answer is no.
    """
    from cpulm.errors import AbortedError, SettingsError
    from cpulm.ui.console import say
    from cpulm.ui.tables import rows
    from cpulm.units import format_bytes

    say(rows("", ["path", "size"], [(path, format_bytes(size)) for path, size in files]))
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise SettingsError("nothing was deleted: there is no terminal to ask in", "add --yes")
    if not typer.confirm(f"{what} them, {format_bytes(sum(size for _, size in files))}?", err=True):
        raise AbortedError("nothing was deleted")
