"""The set-up that train_cpu.sh, train_cpu.bat and run_tests.sh share, and what they add to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import environment  # noqa: E402 - the scripts are no package
import train_cpu  # noqa: E402


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that decide what is installed, in a folder with a space in its name."""
    root = tmp_path / "a project"
    root.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    return root


def pretend_installed(root: Path, extra: str) -> None:
    """The least of an environment: its Python and the stamps of a finished installation."""
    python = environment.program(root / ".venv", "python")
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_bytes(b"")
    for name in ("", extra):
        environment._stamp(root / ".venv", name).write_text(environment.digest(root), encoding="utf-8")


def test_a_finished_installation_is_used_as_it_is(project: Path) -> None:
    pretend_installed(project, "")
    python = environment.program(project / ".venv", "python")
    assert environment.prepare(root=project) == python
    assert python.read_bytes() == b""


def test_the_test_extra_is_an_installation_of_its_own(project: Path) -> None:
    wanted = environment.digest(project)
    pretend_installed(project, "")
    assert environment.is_stamped(project / ".venv", "", wanted)
    assert not environment.is_stamped(project / ".venv", "test", wanted)
    pretend_installed(project, "test")
    assert environment.is_stamped(project / ".venv", "test", wanted)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_change_of_what_is_asked_for_installs_again(project: Path, name: str) -> None:
    pretend_installed(project, "")
    with (project / name).open("a", encoding="utf-8") as file:
        file.write("# more\n")
    assert not environment.is_stamped(project / ".venv", "", environment.digest(project))


def test_a_moved_project_installs_again(project: Path) -> None:
    pretend_installed(project, "")
    moved = project.rename(project.with_name("moved"))
    assert not environment.is_stamped(moved / ".venv", "", environment.digest(moved))


@pytest.mark.parametrize(
    ("line", "cuda"),
    [
        ("cuda: Optional[str] = None", None),
        ("cuda: Optional[str] = '13.0'", "13.0"),
        ("cuda = '12.8'", "12.8"),
        ("__all__ = ['cuda']", None),
    ],
)
def test_a_cuda_build_is_known_by_its_version_file(line: str, cuda: str | None) -> None:
    assert environment.cuda_of(f"debug = False\n{line}\nhip: Optional[str] = None\n") == cuda


def test_torch_is_pinned_to_its_cpu_build() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split(";") for line in lines if line and not line.startswith("#")]
    assert [pin.split("==")[0] for pin, _ in pins] == ["torch", "torch"]
    by_system = {marker.strip(): pin.strip() for pin, marker in pins}
    assert by_system['sys_platform == "linux"'].endswith("+cpu")
    assert by_system['sys_platform == "linux"'] == by_system['sys_platform != "linux"'] + "+cpu"


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        ([], ["--device", "cpu"]),
        (["--steps", "20"], ["--device", "cpu"]),
        (["--preset", "small"], ["--device", "cpu"]),
        (["--preset=small", "--device=mps"], []),
        (["--config", "my.yaml"], ["--device", "cpu"]),
    ],
)
def test_what_is_added_to_the_arguments(arguments: list[str], added: list[str]) -> None:
    assert train_cpu.defaults(arguments) == added


def test_checkpoints_of_this_folder_or_of_the_run_that_is_named(in_empty_folder: Path) -> None:
    for name in ("runs/tiny-1/best.pt", "runs/tiny-1/latest.pt", "else where/best.pt", "runs/x/other.pt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    here = {Path("runs/tiny-1/best.pt"), Path("runs/tiny-1/latest.pt")}
    assert set(train_cpu.checkpoints(["--steps", "20"])) == here
    assert set(train_cpu.checkpoints(["--out", "else where"])) == {Path("else where/best.pt")}
    assert set(train_cpu.checkpoints(["--out=else where"])) == {Path("else where/best.pt")}
    assert set(train_cpu.checkpoints(["--out"])) == set()


@pytest.mark.skipif(os.name == "nt", reason="the shell scripts are for the other systems")
@pytest.mark.parametrize("script", ["train_cpu.sh", "run_tests.sh"])
def test_without_a_fitting_python_the_scripts_say_which_one_is_needed(tmp_path: Path, script: str) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("dirname", "bash"):
        (tools / name).symlink_to(str(shutil.which(name)))
    old = tools / "python3"
    old.write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 3.8.1\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / script)],
        env={"PATH": str(tools)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "there is no Python 3.10 to 3.14 here; python3 is Python 3.8.1" in done.stderr
    assert "hint: install one of them" in done.stderr
