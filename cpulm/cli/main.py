"""The ``cpulm`` entry point: its subcommands, and the boundary where errors become exit codes."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from pathlib import Path
from traceback import clear_frames
from types import TracebackType
from typing import Annotated, NoReturn

import typer

from cpulm import __version__
from cpulm.address_space import fit_below_limit
from cpulm.cli.analyze import analyze
from cpulm.cli.at_boot import at_boot
from cpulm.cli.benchmark import benchmark
from cpulm.cli.chat import chat
from cpulm.cli.evaluate import evaluate
from cpulm.cli.export import export
from cpulm.cli.generate import generate
from cpulm.cli.parser import Command, Commands, CommandWithOthers, UsageError
from cpulm.cli.resume import resume
from cpulm.cli.runs import runs
from cpulm.cli.runs_keeping import note, prune, rename, rm
from cpulm.cli.serve import serve
from cpulm.cli.stop import stop
from cpulm.cli.summary import summary
from cpulm.cli.supervise import supervise
from cpulm.cli.sweep import sweep
from cpulm.cli.sysinfo import sysinfo
from cpulm.cli.tokenize import tokenize
from cpulm.cli.train import train
from cpulm.cli.unknown_variables import warn_of_unknown_variables
from cpulm.cli.usage_errors import explain
from cpulm.cli.watch import watch
from cpulm.errors import AbortedError, CpulmError, SettingsError, StoppedError, of_the_system
from cpulm.interrupts import ABANDONED, ABORTED, ctrl_c_during_imports

app = typer.Typer(
    name="cpulm",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = {
    "Train": (train, resume, sweep, stop, at_boot),
    "Follow and judge": (watch, analyze, evaluate),
    "Use": (generate, chat, serve, export),
    "Prepare": (tokenize, benchmark, sysinfo),
}
for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        _name = _command.__name__.replace("_", "-")
        app.command(_name, cls=Command, rich_help_panel=_panel)(_command)
_runs = typer.Typer(cls=CommandWithOthers, rich_markup_mode=None)
_runs.command("list", cls=Command, hidden=True)(runs)
for _command in (rm, prune, note):
    _runs.command(cls=Command)(_command)
_runs.command("name", cls=Command)(rename)
app.add_typer(
    _runs, name="runs", rich_help_panel="Follow and judge", help="List, name, prune and delete runs."
)
for _hidden in (supervise, summary):
    app.command(cls=Command, hidden=True)(_hidden)

_ELSEWHERE = "change to another one, such as `cd ~`"


def _show_version(asked: bool) -> None:
    if asked:
        from cpulm.ui.console import write_text

        write_text(f"cpulm {__version__}\n")
        raise typer.Exit


@app.callback()
def cpulm(
    version: Annotated[  # noqa: ARG001 - its callback has shown it
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train small language models from scratch on the computer you already have."""
    warn_of_unknown_variables(os.environ)


def main() -> NoReturn:
    """Run the command line; errors that a user can fix end as one message, one hint and an exit code."""
    _open_missing_streams()
    _collect_less_garbage()
    atexit.register(_drop_what_no_log_takes)
    sys.excepthook = _show_bug
    _require_working_folder()
    fit_below_limit()
    try:
        with ctrl_c_during_imports():
            ended_with = app(prog_name="cpulm", standalone_mode=False)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been shown
            sys.exit(2)
        _end(explain(error))
    except CpulmError as error:
        _end(error)
    except (KeyboardInterrupt, typer.Abort):
        _end(AbortedError(ABORTED))
    except Exception as error:
        known = of_the_system(error)
        if isinstance(error, PermissionError) and not os.access(".", os.X_OK):
            known = SettingsError("the working folder may not be entered", _ELSEWHERE)
        if known is None:
            raise
        clear_frames(error.__traceback__)  # they may hold what fills the memory
        known.__cause__ = error
        _end(known)
    sys.exit(ended_with if isinstance(ended_with, int) else 0)


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from cpulm.ui.console import show_bug

    show_bug(kind, error, trace)


def _require_working_folder() -> None:
    """End the program if its folder is gone: no relative path is left, and torch cannot load."""
    try:
        Path.cwd()
    except FileNotFoundError:
        _end(SettingsError("the working folder no longer exists", _ELSEWHERE))


def _collect_less_garbage() -> None:
    """Search for unreachable cycles rarely, and not at the end: starting with torch takes a fifth less."""
    gc.set_threshold(50_000, 20, 20)
    atexit.register(gc.freeze)


def _drop_what_no_log_takes() -> None:
    """A full disk under stderr decides no exit code: Python's own flush at the end would make it 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _open_missing_streams() -> None:
    """Give this process its three standard streams: a closed one becomes the null device.

    ``2>&-`` closes one, and pythonw.exe has none: Python's stream is None, and the next file that is opened
    (a checkpoint, say) gets the free number, into which every library then writes its warnings.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115 - lives on as that
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _end(error: CpulmError) -> NoReturn:
    if os.environ.get("CPULM_DEBUG") == "1":
        raise error
    from cpulm.ui.console import show_error

    on_purpose = isinstance(error, (StoppedError, AbortedError))
    show_error(error.message, error.hint, label="stopped" if on_purpose else "error")
    if any(thread.name == ABANDONED for thread in threading.enumerate()):
        # Python would end the thread within the library's code, which aborts the process.
        atexit._run_exitfuncs()
        os._exit(error.exit_code)
    sys.exit(error.exit_code)
