"""cpulm starts itself by one function, and never imports modules from the working folder."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpulm.command import cpulm_command, last_error, last_line, log_environment, read_tail

ROOT = Path(__file__).parents[2]
LIBRARIES = ("torch", "numpy", "rich", "typer", "click", "yaml", "pydantic", "psutil", "tokenizers", "cpulm")


@pytest.fixture
def shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a file of the user's for every module of Python and some libraries.

    Each would write to ``ran`` and end the program.
    """
    for name in {*sys.stdlib_module_names, *LIBRARIES} - {"__main__"}:
        program = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r}); raise SystemExit('{name}.py ran')\n"
        (tmp_path / f"{name}.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", [["--version"], ["sysinfo", "--json"], ["supervise", "--help"]])
def test_files_of_the_user_are_never_taken_for_modules(shadowed: Path, arguments: list[str]) -> None:
    done = subprocess.run(cpulm_command(*arguments), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (shadowed / "ran").exists()


def test_python_m_cpulm_takes_none_either(shadowed: Path) -> None:
    """What Python itself imports before ``cpulm``, and ``cpulm``, it does take from the working folder."""
    for path in shadowed.glob("*.py"):
        if path.stem not in ("random", "select", "tokenize", "json", "torch", "rich", "typer"):
            path.unlink()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cpulm", "sysinfo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)


def test_it_is_this_package_that_starts_whatever_else_is_called_cpulm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpulm").mkdir()
    (tmp_path / "cpulm" / "__init__.py").write_text("raise SystemExit('another one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert subprocess.run(cpulm_command("--version"), check=False).returncode == 0


@pytest.mark.parametrize("option", [[], ["-I"], *([["-P"]] if sys.version_info >= (3, 11) else [])])
def test_the_module_path_is_pythons_own(option: list[str], tmp_path: Path) -> None:
    """Nothing of it is lost: PYTHONPATH and site packages stay, also where Python adds no folder itself."""
    code = "import sys; print([path for path in sys.path if path])"
    here = subprocess.run([sys.executable, *option, "-c", code], capture_output=True, text=True, check=True)
    source = Path(cpulm_command()[1]).read_text(encoding="utf-8")
    source = source.replace("from cpulm.cli.main import main", f"{code}; main = str")
    copy = tmp_path / "cpulm" / "__main__.py"
    copy.parent.mkdir()
    copy.write_text(source)
    (copy.parent / "__init__.py").write_text("")
    done = subprocess.run([sys.executable, *option, str(copy)], capture_output=True, text=True, check=True)
    assert done.stdout == here.stdout


def test_nothing_else_builds_such_a_command() -> None:
    sources = [*(ROOT / "cpulm").rglob("*.py"), ROOT / "scripts" / "train_cpu.py"]
    users = {
        source.relative_to(ROOT / "cpulm").as_posix()
        for source in sources
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable"
    }
    assert users == {"command.py"}


def test_a_log_is_plain_utf8_and_gets_no_settings_if_they_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("CPULM_TRAIN__LR", "3")
    monkeypatch.setenv("CPULM_CACHE", "here")
    with_them, without = log_environment(), log_environment(settings=False)
    assert with_them["CPULM_TRAIN__LR"] == "3"
    assert "CPULM_TRAIN__LR" not in without
    assert without["CPULM_CACHE"] == "here"
    assert not {"FORCE_COLOR", "COLUMNS"} & with_them.keys()
    assert (without["NO_COLOR"], without["PYTHONIOENCODING"]) == ("1", "utf-8")


@pytest.mark.parametrize(
    ("output", "error", "line"),
    [
        ("step 1\nerror: the first\nerror: the last\n hint: do it\n\n", "the last", "hint: do it"),
        ("step 1\nValueError: error: no\n", "", "ValueError: error: no"),
        ("", "", ""),
    ],
)
def test_what_a_process_ended_with(output: str, error: str, line: str) -> None:
    assert (last_error(output), last_line(output)) == (error, line)


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"error: of the process before\nerror: \xff\n" + b"step\n" * 10)
    assert last_error(read_tail(log, 29)) == "\N{REPLACEMENT CHARACTER}"
    assert read_tail(log, 29 + 9) == "step\n" * 10
    log.write_bytes(b"x" * 2**20)
    assert len(read_tail(log, 0)) == 2**14
    assert read_tail(tmp_path / "missing", 0) == ""
