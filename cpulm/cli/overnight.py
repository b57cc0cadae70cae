"""``--overnight``: starts a run in a process that outlives the terminal, and returns once it has begun."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import typer

from cpulm import run_dir
from cpulm.command import cpulm_command, log_environment, typed
from cpulm.errors import AbortedError, ResourceError, SettingsError
from cpulm.regular_file import open_own
from cpulm.run_dir import RunDir

_Watcher = tuple[str, int, str]
_POLL_SECONDS = 0.2
_SUPERVISOR_DECIDES = ("--overnight", "--headless", "--json", "--resume")


def train_overnight(arguments: Sequence[str], out: Path | None, stem: str, *, json: bool) -> None:
    """Train a new run overnight; returns once it has begun.

    Args:
        arguments: those of ``cpulm train``.
        out: the run's folder, or None for the first free ``runs/<stem>-<n>``.

    Raises:
        CpulmError: the folder cannot be made.
        typer.Exit: the run ended before it had begun, with this exit code; its error has been shown.
    """
    run = run_dir.create(out, stem)
    # The folder must be empty for ``cpulm train``: the log moves into it once the run has begun.
    log = run.path.absolute().with_name(f"{run.name}.overnight.log")
    log.unlink(missing_ok=True)
    try:
        _start_supervisor(run, log, child_arguments(arguments), new=True, json=json)
    finally:
        with contextlib.suppress(OSError):
            if not any(run.path.iterdir()):
                run.path.rmdir()  # it never began


def resume_overnight(
    path: Path, end: Mapping[str, Any], changes: Mapping[str, Any], more: Sequence[str], *, json: bool
) -> None:
    """Resume the run at ``path`` overnight; returns once it has begun.

    Args:
        end: a new horizon by the settings' names, None for those not given.
        changes: other settings by their full names, such as ``runtime.nice``, None for those not given.
        more: other options of ``cpulm resume``.

    Raises:
        CpulmError: the run cannot be resumed.
        typer.Exit: as in :func:`train_overnight`.
    """
    from cpulm.runs import supervisor_state

    run = run_dir.find(path)
    if path.is_file():
        raise SettingsError(
            f"{path} is a single checkpoint; --overnight continues a run from its newest checkpoint",
            f"give the run's folder: `cpulm resume {typed(run.path)} --overnight`",
        )
    night = supervisor_state.read(run)
    if night is not None and night.is_active():
        raise SettingsError(
            f"{run.path} is already trained overnight, supervised by process {night.pid}",
            f"see it with `cpulm watch {typed(run.path)}`, stop it with `cpulm stop {typed(run.path)}`",
        )
    flags = [*as_flags({**end, **changes}), *more]
    _start_supervisor(run, run.supervisor_log, flags, new=False, json=json)


def child_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``cpulm train`` without those that the supervisor decides."""
    kept: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--out":
            del waiting[:1]
        elif not argument.startswith("--out=") and argument not in _SUPERVISOR_DECIDES:
            kept.append(argument)
    return kept


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """The options of ``cpulm resume`` that give these settings, None for those not given."""
    from cpulm.cli.setting_flags import FLAGS

    options = {flag.key.removeprefix("train."): flag.options[0].split("/")[0] for flag in FLAGS.values()}
    flags = []
    for name, value in settings.items():
        option = options[name.removeprefix("train.")]
        if isinstance(value, bool):
            flags.append(option if value else option.replace("--", "--no-", 1))
        elif value is not None:
            flags += [f"{option}={one}" for one in (value if isinstance(value, list) else [value])]
    return flags


def _start_supervisor(run: RunDir, log: Path, arguments: list[str], *, new: bool, json: bool) -> None:
    """Start the supervisor and show its log until the run has begun or has ended."""
    before = _watcher(run)
    kind = ["--new"] if new else []
    try:
        file = os.fdopen(open_own(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")
        at = file.tell()
    except OSError as error:
        raise ResourceError(f"cannot write {log}: {error.strerror}", "choose another --out") from error
    with file:
        supervisor = subprocess.Popen(
            cpulm_command("supervise", *kind, f"--log={log}", "--", str(run.path), *arguments),
            env=log_environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            **_detached(),
        )
    with log.open("rb") as said:
        said.seek(at)
        try:
            code = _follow(supervisor, run, said, before)
        except KeyboardInterrupt:
            _stop(supervisor)
            _show(said)
            raise AbortedError("aborted before the run had begun") from None
    if code is not None and _watcher(run) == before:
        if new:
            log.unlink(missing_ok=True)
        raise typer.Exit(code)
    _report(run, json)
    if code:
        raise typer.Exit(code)


def _follow(
    supervisor: subprocess.Popen[bytes], run: RunDir, said: IO[bytes], before: _Watcher | None
) -> int | None:
    """Show the log until the run has begun (None) or the supervisor has ended (its exit code)."""
    while True:
        code = supervisor.poll()
        _show(said)
        if code is not None:
            return code
        if _watcher(run) != before:
            return None
        time.sleep(_POLL_SECONDS)


def _watcher(run: RunDir) -> _Watcher | None:
    """The supervisor's process that ``overnight.json`` names; it changes once the run has begun.

    A process and not a time: the clock may be set back at any moment.
    """
    from cpulm.runs import supervisor_state

    night = supervisor_state.read(run)
    return None if night is None else night.watcher()


def _show(said: IO[bytes]) -> None:
    from cpulm.ui.console import stderr

    text = said.read().decode("utf-8", "replace")
    if text:
        stderr().print(text, end="", soft_wrap=True)


def _detached() -> dict[str, Any]:
    """Options of Popen that make a process outlive the terminal and its Ctrl-C."""
    if sys.platform == "win32":
        # It gets a hidden console: without one, each of its children would open a window.
        return {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _stop(supervisor: subprocess.Popen[bytes]) -> None:
    """End the supervisor and its run, which has not begun: nothing is lost."""
    if os.name == "nt":
        subprocess.run(
            ["taskkill", "/T", "/F", "/PID", str(supervisor.pid)], capture_output=True, check=False
        )
    else:
        supervisor.send_signal(signal.SIGINT)
    with contextlib.suppress(KeyboardInterrupt):
        supervisor.wait()


def _report(run: RunDir, json: bool) -> None:
    from cpulm.runs import supervisor_state
    from cpulm.ui.console import print_json, stderr, write_text_or_warn

    night = supervisor_state.read(run)
    watched = night is not None and night.is_active()
    if json:
        pid = night.pid if night and watched else None
        print_json({"run": run.path, "state": night.state if night else None, "supervisor_pid": pid})
        return
    place = typed(run.path)
    if watched:
        lines = [
            f"\n{run.path} continues in the background. This terminal may be closed.",
            f"  watch it        cpulm watch {place}",
            f"  stop it         cpulm stop {place}",
            f"  its log         {run.supervisor_log}",
            f"  in the morning  {run.summary}",
            "It is restarted after a crash. A closed lid or an empty battery still stops it.",
            f"To continue it after a reboot too: cpulm at-boot {place} --install",
        ]
    else:
        lines = [f"\n{run.path} has already ended: see {run.summary}"]
    for line in lines:
        stderr().print(line, soft_wrap=True)
    write_text_or_warn(f"{run.path}\n")
