"""The wheel: its contents, and that it works without the source tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import cpulm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel; needs no network, for hatchling is part of the test extra."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    return python


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode("utf-8"))


def ask(python: Path, folder: Path, program: str) -> object:
    """What ``program`` prints, as JSON, when run in ``folder``."""
    done = subprocess.run([python, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_it_holds_the_code_the_presets_and_the_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    kinds = (".py", ".cpp", ".h", ".js", ".css", ".html")
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cpulm").rglob("*") if path.suffix in kinds}
    presets = {f"cpulm/presets/{path.name}" for path in (ROOT / "presets").glob("*.yaml")}
    assert presets
    about = f"cpulm-{cpulm.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == code | presets
    assert {f"{about}licenses/LICENSE", f"{about}entry_points.txt", f"{about}METADATA"} <= names


def test_its_metadata(wheel: Path) -> None:
    about = metadata(wheel)
    assert (about["Name"], about["Version"]) == ("cpulm", cpulm.__version__)
    assert about["License-Expression"] == "MIT"
    assert set(about["Requires-Python"].split(",")) == {">=3.10", "<3.15"}
    required = {name for name in about.get_all("Requires-Dist", []) if "extra ==" not in name}
    assert {"torch>=2.10", "numpy>=1.26"} <= required
    assert not any("==" in name for name in required), "the pin of torch belongs to constraints.txt"
    assert str(about.get_payload()).startswith("# cpulm")


def test_the_presets_are_found_from_any_folder_without_dependencies(python: Path, tmp_path: Path) -> None:
    program = """if True:
        import json, cpulm.preset_files as files
        print(json.dumps([files.__file__, files.preset_names()]))
    """
    installed = ask(python, tmp_path, program)
    assert isinstance(installed, list)
    place, names = installed
    assert not Path(place).is_relative_to(ROOT)
    assert names == sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


def test_it_puts_the_command_into_the_environment(python: Path) -> None:
    assert python.with_name("cpulm.exe" if os.name == "nt" else "cpulm").is_file()
