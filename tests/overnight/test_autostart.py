"""The start-up entries for each system, parsed by that system's own rules."""

from __future__ import annotations

import os
import plistlib
import shlex
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cpulm.command import cpulm_command
from cpulm.errors import SettingsError
from cpulm.overnight import autostart
from cpulm.overnight.autostart import Entry
from cpulm.run_dir import RunDir

PLACES = ["/home/me/runs/tiny-1", "/home/my self/100% $HOME/a \"b\" & <c> 'd' \\e/tiny-1"]
COMMAND = cpulm_command("supervise", "--at-boot", "--")


def entry(place: str, system: str, home: Path) -> Entry:
    return autostart.entry(RunDir(Path(place)), system=system, home=home)


def words_of_systemd(line: str) -> list[str]:
    """The words of an ExecStart line, by systemd's rules for quotes, ``%`` and ``$``."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


@pytest.mark.parametrize("place", PLACES)
def test_a_systemd_unit_starts_the_supervisor_of_that_run(place: str, tmp_path: Path) -> None:
    unit = entry(place, "linux", tmp_path)
    lines = dict(line.split("=", 1) for line in unit.text.splitlines() if "=" in line and line[0] != "#")
    assert words_of_systemd(lines["ExecStart"]) == [*COMMAND, str(Path(place))]
    assert lines["WantedBy"] == "default.target"
    assert lines["Restart"] == "on-abnormal"
    assert unit.path == tmp_path / ".config/systemd/user" / unit.name
    assert "enable-linger" in unit.advice
    assert all("\n" not in line for line in unit.text.splitlines())


def test_a_line_end_in_a_path_begins_no_line_of_the_unit(tmp_path: Path) -> None:
    unit = entry("/runs/a\nExecStartPre=/bin/evil", "linux", tmp_path)
    assert not [line for line in unit.text.splitlines() if line.startswith("ExecStartPre")]
    assert "a\\x0aExecStartPre" in unit.text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("place", PLACES)
def test_systemd_itself_finds_no_fault_with_the_unit(place: str, tmp_path: Path) -> None:
    unit = entry(place, "linux", tmp_path)
    file = tmp_path / unit.name
    file.write_text(unit.text, encoding="utf-8")
    command = ["systemd-analyze", "verify", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])


@pytest.mark.parametrize("place", PLACES)
def test_a_launchd_agent_starts_the_supervisor_of_that_run(place: str, tmp_path: Path) -> None:
    agent = entry(place, "darwin", tmp_path)
    record = plistlib.loads(agent.text.encode())
    assert record["ProgramArguments"] == [*COMMAND, str(Path(place))]
    assert record["RunAtLoad"] is True
    assert record["Label"] == agent.path.stem
    assert agent.path.parent == tmp_path / "Library" / "LaunchAgents"


@pytest.mark.parametrize("place", PLACES)
def test_a_windows_task_starts_the_supervisor_of_that_run(place: str, tmp_path: Path) -> None:
    task = entry(place, "win32", tmp_path)
    names = {"t": "http://schemas.microsoft.com/windows/2004/02/mit/task"}
    root = ElementTree.fromstring(task.text.encode("utf-16"))
    assert root.findtext(".//t:Exec/t:Command", namespaces=names) == COMMAND[0]
    arguments = root.findtext(".//t:Exec/t:Arguments", namespaces=names)
    assert arguments == subprocess.list2cmdline([*COMMAND[1:], str(Path(place))])
    assert root.findtext(".//t:ExecutionTimeLimit", namespaces=names) == "PT0S"
    assert root.find(".//t:LogonTrigger", namespaces=names) is not None


def test_runs_of_the_same_name_have_entries_of_their_own() -> None:
    names = {autostart.entry_name(RunDir(Path(place))) for place in ("/a/tiny-1", "/b/tiny-1")}
    assert len(names) == 2
    assert all(name.startswith("cpulm-tiny-1-") for name in names)


def test_an_agent_is_put_in_its_place_and_taken_away(tmp_path: Path) -> None:
    agent = entry(PLACES[0], "darwin", tmp_path)
    autostart.install(agent)
    assert plistlib.loads(agent.path.read_bytes())["Label"] == agent.name
    assert autostart.remove(agent)
    assert not agent.path.exists()
    assert not autostart.remove(agent)


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for systemctl")
def test_a_unit_is_enabled_and_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in(tmp_path, monkeypatch, "exit 0")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    unit = entry(PLACES[0], "linux", tmp_path)
    autostart.install(unit)
    assert unit.path.read_text(encoding="utf-8") == unit.text
    assert autostart.remove(unit)
    assert asked.read_text().splitlines() == [
        "--user daemon-reload",
        f"--user enable {unit.name}",
        f"--user disable {unit.name}",
    ]
    assert not unit.path.exists()


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for systemctl")
def test_without_a_user_session_of_systemd_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "echo 'Failed to connect to bus' >&2; exit 1")
    unit = entry(PLACES[0], "linux", tmp_path)
    with pytest.raises(SettingsError, match="Failed to connect to bus") as caught:
        autostart.install(unit)
    assert "print the entry" in caught.value.hint
    assert not unit.path.exists()


def test_without_the_program_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="systemctl --user daemon-reload"):
        autostart.install(entry(PLACES[0], "linux", tmp_path))


def stand_in(folder: Path, patch: pytest.MonkeyPatch, body: str) -> Path:
    """A systemctl that notes what it is asked; the file of notes."""
    tools, asked = folder / "tools", folder / "asked"
    tools.mkdir()
    program = tools / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> "{asked}"\n{body}\n')
    program.chmod(0o755)
    patch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return asked
