"""The wheel: its contents, and that it works without the source tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import cpulm
from cpulm.kernel_variants import VARIANTS
from cpulm.native.library_cache import name_with_digest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import build_wheels  # noqa: E402 - the scripts are no package


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
    done = subprocess.run(
        [python, "-I", "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_it_holds_the_code_the_presets_and_the_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    kinds = (".py", ".cpp", ".h", ".js", ".css", ".html", ".wat", ".wasm", ".json", ".typed")
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


@pytest.fixture(scope="module")
def platform_wheel(kernels_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A platform wheel with this machine's kernels in the place of Zig's."""
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    folder, out = tmp_path_factory.mktemp("kernels") / tag, tmp_path_factory.mktemp("wheel")
    folder.mkdir()
    content, suffix = kernels_library.read_bytes(), kernels_library.suffix
    for variant in ("avx2", "avx512", "neon"):  # whatever this CPU is
        (folder / name_with_digest(variant, content, suffix)).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        build_wheels.build("--wheel", out=out, libraries=folder)
    (built,) = out.glob(f"cpulm-{cpulm.__version__}-py3-none-{tag}.whl")
    return built


WITHOUT_COMPILER = """if True:
    import json, torch
    from cpulm.execution.runtime import choose_runtime
    from cpulm.settings import RuntimeSettings
    from cpulm.system.machine import read_machine
    machine = read_machine()
    runtime = choose_runtime(RuntimeSettings(device="cpu"), machine)
    x = torch.ones(2, 64)
    y, _ = runtime.kernels.rms_norm(x, torch.ones(64), 0.0)
    kernels = runtime.kernels
    print(json.dumps([machine.compiler_problem, kernels.variant, kernels.threaded, torch.equal(x, y)]))
"""


def test_a_platform_wheel_brings_kernels_for_a_machine_without_a_compiler(
    platform_wheel: Path, tmp_path: Path
) -> None:
    """Installed beside the test environment's torch, with nothing on PATH."""
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, "--target", str(site), str(platform_wheel)], check=True)
    environ = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(site)}
    environ.pop("CXX", None)
    command = [sys.executable, "-c", WITHOUT_COMPILER]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    problem, variant, threaded, right = json.loads(done.stdout)
    assert problem == "no C++ compiler was found"
    assert variant in ("AVX2", "AVX-512", "NEON")
    assert threaded
    assert right


def test_every_variant_is_built_for_some_platform_and_no_other() -> None:
    built = {variant for platform in build_wheels.PLATFORMS.values() for variant in platform.variants}
    assert built == {variant.name for variant in VARIANTS} == set(build_wheels.CPUS)
