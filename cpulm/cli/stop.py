"""``cpulm stop``: stops a run that trains in another terminal, or overnight, with everything saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpulm.cli import completion
from cpulm.command import typed

if TYPE_CHECKING:
    from cpulm.run_dir import RunDir
    from cpulm.runs.status import RunStatus

_POLL_SECONDS = 0.2


def stop(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...", autocompletion=completion.run, help="Folders of runs.", show_default=False
        ),
    ] = None,
    all_runs: Annotated[
        bool, typer.Option("--all", help="Every run in runs/ that is being trained.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Request the stop and return at once.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Write the state of each run as one JSON array.")
    ] = False,
) -> None:
    """Stop a run from another terminal, with everything saved.

    The run finishes its step and saves, as after Ctrl-C in its own terminal; `cpulm resume` continues it.
    This also works from another computer that shares the disk. An overnight run stays stopped, even after
    a reboot. Ctrl-C while this command waits does not cancel the request.

    **Examples**

        cpulm stop runs/tiny-1

        cpulm stop --all --no-wait
    """
    from cpulm import run_dir
    from cpulm.errors import SettingsError

    if bool(runs) == all_runs:
        raise SettingsError(
            "give either runs or --all" if runs else "no run given",
            "name one, as in `cpulm stop runs/tiny-1`; `cpulm runs` lists them",
        )
    chosen = [run_dir.find(path) for path in runs or []] if not all_runs else _all_at_work()
    _stop(chosen, no_wait=no_wait, json=json)


def _all_at_work() -> list[RunDir]:
    from cpulm.runs.status import find_runs, is_at_work

    folder = Path("runs")
    return [run for run in find_runs([folder] if folder.is_dir() else []) if is_at_work(run)]


def _stop(runs: list[RunDir], *, no_wait: bool, json: bool) -> None:
    from cpulm.runs.status import is_at_work, status_of
    from cpulm.runs.stop_file import request_stop
    from cpulm.ui.console import print_json, write_text

    asked = [run for run in runs if is_at_work(run)]
    for run in asked:
        request_stop(run)
    if not no_wait:
        for run in asked:
            _wait_for_end(run)
    if json:
        print_json([status_of(run) for run in runs])
        return
    if not runs:
        write_text("nothing is being trained in runs/\n")
    for run in runs:
        _say(status_of(run), asked=run in asked)


def _wait_for_end(run: RunDir) -> None:
    import time

    from cpulm.errors import AbortedError
    from cpulm.runs.status import is_at_work
    from cpulm.runs.stop_file import is_stop_requested, request_stop
    from cpulm.ui.waiting import waiting

    try:
        with waiting(f"{run.path}: requested to stop; it finishes its step and saves") as show:
            while is_at_work(run):
                _wake(run)
                if not is_stop_requested(run):
                    # A process that was just starting has removed the request as an old one.
                    request_stop(run)
                show()
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        raise AbortedError(
            f"no longer waiting; {run.path} is still requested to stop", "see its state with `cpulm runs`"
        ) from None


def _wake(run: RunDir) -> None:
    """Continue a suspended run, or its supervisor: it cannot save otherwise.

    Raises:
        SettingsError: if this user may not do that.
    """
    from cpulm.errors import SettingsError
    from cpulm.runs.status import processes_of
    from cpulm.system import process
    from cpulm.ui.console import say

    for pid in processes_of(run):
        if not process.is_suspended(pid):
            continue
        if not process.wake(pid):
            raise SettingsError(
                f"process {pid}, which trains {run.path}, is suspended, and only its owner can continue it",
                f"it saves and ends after `kill -CONT {pid}`",
            )
        say(f"process {pid} was suspended (Ctrl-Z or SIGSTOP): continued, so that it can save and end")


def _say(now: RunStatus, *, asked: bool) -> None:
    """Write the run's state to stdout, and what can be done to stderr."""
    from cpulm.runs.run_states import RUN_STATES
    from cpulm.ui.console import say, write_text
    from cpulm.ui.terminal_text import harmless

    where = "" if now.step is None else f" (step {now.step:,})"
    if now.step is not None and now.steps is not None:
        where = f" (step {now.step:,} of {now.steps:,})"
    run, how = harmless(now.run), RUN_STATES[now.state]
    if not asked:
        how = f"not running: {how}"
    elif now.state in ("running", "restarting"):
        how = "requested to stop"
    write_text(f"{run}: {how}{where}\n")
    if now.state not in ("running", "restarting", "finished"):
        say(f" hint: continue it with `cpulm resume {typed(run)}`")
