"""``cpulm at-boot``: continues an overnight run after a reboot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpulm import command
from cpulm.cli import completion

if TYPE_CHECKING:
    from cpulm.run_dir import RunDir


def at_boot(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            autocompletion=completion.run,
            help="The folder of a run that is trained overnight.",
            show_default=False,
        ),
    ],
    install: Annotated[bool, typer.Option("--install", help="Write the entry and enable it.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Disable the entry and remove it.")] = False,
) -> None:
    """Continue an overnight run after a reboot.

    Prints a start-up entry for your account only: a systemd user unit on Linux, a launchd agent on macOS,
    a scheduled task on Windows. `--install` writes and enables it. The entry does nothing if the run has
    finished or was stopped on purpose.

    Example: `cpulm at-boot runs/small-1 --install`
    """
    from cpulm import run_dir
    from cpulm.errors import SettingsError
    from cpulm.overnight import autostart as boot
    from cpulm.run_dir import RunDir
    from cpulm.ui.console import stderr, write_text

    if install and remove:
        raise SettingsError("--install and --remove cannot be combined", "leave out one of them")
    # The entry of a run whose folder is gone can still be removed.
    path = (run if remove else run_dir.find(run).path).resolve()
    entry = boot.entry(RunDir(path))
    if remove:
        there = boot.remove(entry)
        stderr().print(f"removed {entry.path}" if there else f"there was no {entry.path}", soft_wrap=True)
        return
    if not install:
        write_text(entry.text)
        note = f"\n--install writes this to {entry.path} and enables it. Then {entry.advice}."
        stderr().print(note, soft_wrap=True)
        return
    _require_night(RunDir(path), run)
    boot.install(entry)
    stderr().print(f"wrote {entry.path}: {entry.advice}", soft_wrap=True)
    stderr().print(f"undo it with: cpulm at-boot {command.typed(run)} --remove", soft_wrap=True)


def _require_night(run: RunDir, typed: Path) -> None:
    """Raises SettingsError if there is nothing that the entry could continue."""
    from cpulm.errors import SettingsError
    from cpulm.runs import supervisor_state

    night = supervisor_state.read(run)
    if night is None or night.state in supervisor_state.ENDED:
        why = "is not trained overnight" if night is None else f"is {night.state.replace('_', ' ')}"
        raise SettingsError(
            f"{typed} {why}, so there is nothing to continue after a reboot",
            f"start it with `cpulm resume {command.typed(typed)} --overnight`",
        )
