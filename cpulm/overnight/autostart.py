"""Entries for systemd, launchd or the Task Scheduler that continue an overnight run after a reboot.

An entry belongs to the user, not to the system. Its text is a pure function of the run and the system. It
starts the supervisor, which ends at once if the run has ended, was stopped on purpose, or has a supervisor:
an entry that was forgotten does no harm.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import plistlib
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from cpulm import exit_codes
from cpulm.command import cpulm_command
from cpulm.errors import ResourceError, SettingsError
from cpulm.run_dir import RunDir

SAVING_SECONDS = 300
"""Seconds that the system should wait for a checkpoint at shutdown."""

_NICE = 10
_INSTEAD = (
    "leave out --install to print the entry, and add it yourself to what starts programs on this system"
)


@dataclass(frozen=True)
class Entry:
    """Continues a run when the computer starts.

    ``text`` is the content of the file ``path``; ``enable`` are the commands to run after writing it, and
    ``disable`` those to undo them. ``advice`` says when the entry takes effect.
    """

    name: str
    path: Path
    text: str
    enable: tuple[tuple[str, ...], ...]
    disable: tuple[tuple[str, ...], ...]
    advice: str


def entry(run: RunDir, *, system: str = sys.platform, home: Path | None = None) -> Entry:
    """The entry for a run.

    Args:
        run: with an absolute path.
        system: as in ``sys.platform``.
        home: the user's home folder; None for the real one.
    """
    home = home or _home()
    command = cpulm_command("supervise", "--at-boot", "--", str(run.path), window=system != "win32")
    name = entry_name(run)
    if system == "win32":
        return _task(name, command, run)
    if system == "darwin":
        return _agent(name, command, run, home)
    return _unit(name, command, run, home)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise SettingsError(
            "this account has no home folder, in which its start-up entries would lie", "set HOME"
        ) from error


def entry_name(run: RunDir) -> str:
    """``cpulm-tiny-1-3fa2c1``: the run's name, and a digest of its path."""
    clean = re.sub(r"[^A-Za-z0-9-]+", "-", run.name).strip("-") or "run"
    return f"cpulm-{clean}-{hashlib.sha256(os.fsencode(run.path)).hexdigest()[:6]}"


def install(entry: Entry) -> None:
    """Write the entry and enable it.

    Raises:
        SettingsError: this system cannot enable it; its file is removed again.
        ResourceError: the file cannot be written.
    """
    try:
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        # The Task Scheduler reads UTF-16, the others UTF-8.
        encoding = "utf-16" if entry.path.suffix == ".xml" else "utf-8"
        entry.path.write_text(entry.text, encoding=encoding)
    except OSError as error:
        raise ResourceError(
            f"cannot write {entry.path}: {error.strerror}", "check who owns that folder"
        ) from error
    try:
        for command in entry.enable:
            _run(command)
    except SettingsError:
        entry.path.unlink(missing_ok=True)
        raise


def remove(entry: Entry) -> bool:
    """Disable the entry and remove its file; returns whether there was one.

    Raises:
        SettingsError: the system cannot disable it; the file is removed all the same.
    """
    if not entry.path.is_file():
        return False
    try:
        for command in entry.disable:
            _run(command, "the entry's file is removed; run that command again later")
    finally:
        entry.path.unlink(missing_ok=True)
    return True


def _run(command: Sequence[str], hint: str = _INSTEAD) -> None:
    shown = shlex.join(command)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingsError(f"`{shown}` cannot be run: {error}", hint) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SettingsError(f"`{shown}` failed: {said[0] if said else done.returncode}", hint)


# Linux


def _unit(name: str, command: Sequence[str], run: RunDir, home: Path) -> Entry:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    lines = [
        "[Unit]",
        f"Description=cpulm continues {_percent(_one_line(str(run.path)))}",
        "",
        "[Service]",
        f"ExecStart={' '.join(_systemd_word(word) for word in command)}",
        f"Nice={_NICE}",
        "# At shutdown the supervisor stops the training and waits until it has saved.",
        "KillMode=mixed",
        f"TimeoutStopSec={SAVING_SECONDS}",
        f"SuccessExitStatus={exit_codes.STOPPED}",
        "# The supervisor restarts the training; this restarts the supervisor if it is killed.",
        "Restart=on-abnormal",
        "RestartSec=60",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    unit = f"{name}.service"
    return Entry(
        name=unit,
        path=config / "systemd" / "user" / unit,
        text="\n".join(lines) + "\n",
        enable=(
            ("systemctl", "--user", "daemon-reload"),
            ("systemctl", "--user", "enable", unit),
        ),
        disable=(("systemctl", "--user", "disable", unit),),
        advice="it starts when you log in; `loginctl enable-linger` makes it start with the computer",
    )


def _systemd_word(word: str) -> str:
    """One word of ExecStart: quoted, without the meaning of ``%`` and ``$``. See systemd.service(5)."""
    quoted = word.replace("\\", "\\\\").replace('"', '\\"')
    quoted = "".join(char if char.isprintable() else _escaped(char) for char in quoted)
    return f'"{_percent(quoted).replace("$", "$$")}"'


def _escaped(char: str) -> str:
    """The bytes of a control character as systemd.syntax(7) reads them: a line end would begin a setting."""
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _percent(text: str) -> str:
    return text.replace("%", "%%")


# macOS


def _agent(name: str, command: Sequence[str], run: RunDir, home: Path) -> Entry:
    label = f"cpulm.{name.removeprefix('cpulm-')}"
    record = {
        "Label": label,
        "ProgramArguments": list(command),
        "RunAtLoad": True,
        "KeepAlive": {"Crashed": True},
        "Nice": _NICE,
        "ExitTimeOut": SAVING_SECONDS,
        "StandardErrorPath": str(run.supervisor_log),
    }
    path = home / "Library" / "LaunchAgents" / f"{label}.plist"
    # The system reads the folder at each login. The entry need not be loaded now: the run has a supervisor.
    return Entry(
        name=label,
        path=path,
        text=plistlib.dumps(record, sort_keys=False).decode("utf-8"),
        enable=(),
        disable=(),
        advice="it starts when you log in",
    )


# Windows


def _task(name: str, command: Sequence[str], run: RunDir) -> Entry:
    user = getpass.getuser()
    domain = os.environ.get("USERDOMAIN")
    account = escape(f"{domain}\\{user}" if domain else user)
    text = f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo><Description>cpulm continues {escape(str(run.path))}</Description></RegistrationInfo>
  <Triggers><LogonTrigger><UserId>{account}</UserId></LogonTrigger></Triggers>
  <Principals>
    <Principal id="Author"><UserId>{account}</UserId><LogonType>InteractiveToken</LogonType></Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>7</Priority>
  </Settings>
  <Actions>
    <Exec>
      <Command>{escape(command[0])}</Command>
      <Arguments>{escape(subprocess.list2cmdline(command[1:]))}</Arguments>
    </Exec>
  </Actions>
</Task>
"""
    folder = Path(os.environ.get("LOCALAPPDATA") or tempfile.gettempdir()) / "cpulm"
    path = folder / f"{name}.xml"
    return Entry(
        name=name,
        path=path,
        text=text,
        enable=(("schtasks", "/Create", "/TN", name, "/XML", str(path), "/F"),),
        disable=(("schtasks", "/Delete", "/TN", name, "/F"),),
        advice="it starts when you log in",
    )
