"""``cpulm watch``: follow a run that another process trains, or replay a finished one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpulm.cli import completion
from cpulm.cli.setting_flags import Headless, JsonEvents
from cpulm.command import typed

if TYPE_CHECKING:
    from cpulm.run_dir import RunDir
    from cpulm.runlog.tail import Tail
    from cpulm.ui.watch import Mode, View

_POLL_SECONDS = 0.25
_LOOK_SECONDS = 1.0
"""Seconds between two checks of the run's lock."""


def watch(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            autocompletion=completion.run,
            help="A run's folder.",
            show_default=False,
        ),
    ],
    speed: Annotated[
        float | None,
        typer.Option(metavar="X", help="Replay the run from its start, X times as fast as it was."),
    ] = None,
    web: Annotated[
        bool, typer.Option("--web", help="Show the run's report in a browser, while it trains too.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="With --web: this computer's address in the network, such as 192.168.1.5, for a phone. "
            "[default: 127.0.0.1, for this computer alone]",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=65535, help="With --web: the port; 0: a free one. [default: 8000]"
        ),
    ] = None,
    headless: Headless = False,
    json: JsonEvents = False,
) -> None:
    """Follow a run live, or replay a finished one.

    The run may train in another terminal, overnight, or on a computer that shares the disk. The
    dashboard stays until the run has ended. Ctrl-C closes the dashboard, and the run continues. For a
    finished run it shows the last state; `--speed` replays the whole run. In a pipe, or with
    `--headless`, it prints plain lines instead. `--web` shows the report, by an address that has a key.

    **Examples**

        cpulm watch runs/tiny-1

        cpulm watch runs/tiny-1 --speed 600

        cpulm watch runs/tiny-1 --json | jq 'select(.event == "validated") | .loss'
    """
    import math

    from cpulm import run_dir
    from cpulm.errors import SettingsError
    from cpulm.interrupts import StopRequest
    from cpulm.runlog.tail import require_readable
    from cpulm.runs.status import is_at_work
    from cpulm.ui.watch import choose_mode

    if speed is not None and not (speed > 0 and math.isfinite(speed)):
        raise SettingsError(f"--speed {speed:g} is not a speed", "give a number above 0, such as --speed 600")
    if not web and (host, port) != (None, None):
        raise SettingsError("--host and --port have no effect without --web", "add --web, or leave them out")
    if web and (speed is not None or headless or json):
        raise SettingsError("--web shows a page instead of the dashboard", "leave out the other options")
    if web:
        _serve_report(run_dir.find(run), host or "127.0.0.1", 8000 if port is None else port)
        return
    found, mode = run_dir.find(run), choose_mode(json=json, headless=headless)
    require_readable(found.metrics)
    with StopRequest() as left:
        if speed is not None:
            _play(found, mode, speed, left)
        elif is_at_work(found):
            _follow(found, mode, left)
        else:
            _show_end(found, mode)
    if not left():
        _say_if_crashed(found)


def _serve_report(run: RunDir, host: str, port: int) -> None:
    """Serve the run's report until Ctrl-C."""
    import secrets

    from cpulm.cli.serve import page_address, require_extra
    from cpulm.ui.console import say, write_text

    require_extra("--web")
    from cpulm.serve.report_app import build_report_app
    from cpulm.serve.server import open_port, serve

    taken, key = open_port(port, host), secrets.token_urlsafe(24)
    say("Ctrl-C ends it, the run continues; the page:")
    write_text(f"{page_address(f'http://{host}:{taken.getsockname()[1]}/', key)}\n")
    serve(build_report_app(run, key), taken)


def _follow(run: RunDir, mode: Mode, left: Callable[[], bool]) -> None:
    """Show the run while it trains, until it ends or the watcher leaves."""
    from cpulm.runlog.tail import Tail
    from cpulm.ui.console import say
    from cpulm.ui.watch import look_on

    tail = Tail(run.metrics)
    with look_on(mode, time.time) as view:
        _join(run, tail, view)
        _look_on(run, tail, view, left)
    if left():
        say(f"{run.path} continues to train")


def _look_on(run: RunDir, tail: Tail, view: View, left: Callable[[], bool]) -> None:
    from cpulm.events import Progress, RunStarted
    from cpulm.runs.status import is_at_work

    waiting, looked = not run.metrics.is_file(), time.monotonic()
    at_work = True
    while at_work and not left():
        time.sleep(_POLL_SECONDS)
        if time.monotonic() - looked >= _LOOK_SECONDS:
            at_work, looked = is_at_work(run), time.monotonic()
        if tail.is_replaced():
            _join(run, tail, view)
        for event in tail.new_events():
            waiting = waiting and not isinstance(event, RunStarted)
            view(event)
        if waiting:
            view(Progress(stage="getting ready", done=0, total=None, unit=""))


def _join(run: RunDir, tail: Tail, view: View) -> None:
    from cpulm.ui.replay import snapshot_of
    from cpulm.ui.snapshot import Snapshot

    way_out = f"watching {run.path}; Ctrl-C leaves, the run continues"
    view.join(snapshot_of(tail.new_events(downsample=True), Snapshot(way_out=way_out)))


def _play(run: RunDir, mode: Mode, speed: float, left: Callable[[], bool]) -> None:
    """Replay the run from its start, then follow it if it still trains."""
    from cpulm.runlog.tail import Tail
    from cpulm.runs.status import is_at_work
    from cpulm.ui.replay import Player
    from cpulm.ui.snapshot import Snapshot
    from cpulm.ui.watch import look_on

    tail, player = Tail(run.metrics), Player(speed)
    with look_on(mode, player.now) as view:
        view.join(Snapshot(way_out=f"{run.path} at {speed:g} times its speed; Ctrl-C leaves"))
        for event in player.play(tail.new_events(), left):
            view(event)
    if not left() and is_at_work(run):
        _follow(run, mode, left)


def _show_end(run: RunDir, mode: Mode) -> None:
    from cpulm.runlog.tail import read_events
    from cpulm.ui.replay import snapshot_of
    from cpulm.ui.watch import show_end

    show_end(mode, snapshot_of(read_events(run.metrics)))


def _say_if_crashed(run: RunDir) -> None:
    from cpulm.runs.status import status_of
    from cpulm.ui.console import show_error

    now, hint = status_of(run), f"continue from the last checkpoint: `cpulm resume {typed(run.path)}`"
    if now.state == "new":
        show_error(f"{run.path} has not started, and no process trains it", hint, label="new")
    if now.state == "crashed":
        what = f"{run.path}: its process ended unexpectedly"
        if now.step is not None and now.seen is not None:
            heard = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now.seen))
            what += f"; the last event in its log is from step {now.step:,}, {heard}"
        show_error(what, hint, label="crashed")
