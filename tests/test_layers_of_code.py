"""Who may import whom, how large a room may be, and what every module says of itself."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cpulm"
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("cpulm", "tests", "benchmarks", "scripts", "docs")
    for path in (ROOT / folder).rglob("*.py")
)

GROUND = {
    "atomic",
    "cachedir",
    "errors",
    "events",
    "layers",
    "preset_files",
    "records",
    "rundir",
    "settings",
    "units",
}
MAY_IMPORT = {
    "cli": {"cli", "ui", "engine", *GROUND},
    "ui": {"ui", "atomic", "cachedir", "errors", "events", "records", "rundir", "units"},
    "engine": {"engine", "data", "model", "optim", "native", *GROUND},
    "data": {"data", *GROUND},
    "model": {"model", "native", *GROUND},
    "native": {"native"},
    "optim": {"optim", "native", *GROUND},
    **dict.fromkeys(GROUND, GROUND),
}
"""Every part of the package with the parts it may import; ``__version__`` is free to all."""

ONLY_IN = {
    "typer": ("cpulm/cli/",),
    "rich": ("cpulm/ui/",),
    "psutil": ("cpulm/engine/sysinfo", "cpulm/engine/machine", "cpulm/engine/monitor"),
    "torch": ("cpulm/engine/", "cpulm/model/", "cpulm/optim/", "cpulm/data/", "cpulm/native/"),
}
"""Libraries that belong to some modules alone."""

TOO_LONG: dict[str, int] = {}
"""Functions (``file::name``) and files that may be longer, and why: none."""


def tree_of(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), module)


def imports(module: str) -> set[str]:
    """Full names of all that a module imports, wherever in it: ``from a.b import c`` gives ``a.b.c``.

    Imports under ``if TYPE_CHECKING:`` are left out: a type may be named by everyone.
    """
    tree = tree_of(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are written in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(module: str) -> str:
    return module.removeprefix("cpulm/").removesuffix(".py").partition("/")[0]


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) != "__init__"])
def test_imports_go_down_the_layers(module: str) -> None:
    part = "cli" if part_of(module) == "__main__" else part_of(module)
    assert part in MAY_IMPORT, f"{module} is in no layer; give it one here and in the map of the design"
    parts = {name.split(".")[1] for name in imports(module) if name.startswith("cpulm.")}
    assert parts - {"__version__"} <= MAY_IMPORT[part]


@pytest.mark.parametrize(("library", "places"), ONLY_IN.items())
def test_some_libraries_are_imported_in_their_place_only(library: str, places: tuple[str, ...]) -> None:
    importers = {module for module in MODULES if any(n.split(".")[0] == library for n in imports(module))}
    assert importers, f"nobody imports {library}"
    assert {module for module in importers if not module.startswith(places)} == set()


def loaded_after(program: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after ``program``."""
    code = f"{program}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_ground_needs_neither_torch_nor_numpy() -> None:
    loaded = loaded_after("\n".join(f"import cpulm.{name}" for name in sorted(GROUND)))
    assert {"torch", "numpy", "tokenizers", "rich", "typer", "psutil"} & loaded == set()


def test_the_list_of_presets_needs_nothing_but_python() -> None:
    program = "from cpulm.preset_files import preset_names; assert preset_names()"
    outside = {name.split(".")[0] for name in loaded_after(program)}
    assert {"yaml", "pydantic", "rich", "typer"} & outside == set()


@pytest.mark.parametrize("source", SOURCES)
def test_every_module_says_what_it_is(source: str) -> None:
    assert ast.get_docstring(tree_of(source)), f"{source} has no docstring"


@pytest.mark.parametrize("source", SOURCES)
def test_rooms_are_small(source: str) -> None:
    """A function over 60 lines, or a file over 400, has a second responsibility.

    A function's signature is not counted: the options of a subcommand are its documentation.
    """
    long = {}
    lines = (ROOT / source).read_text(encoding="utf-8").count("\n")
    if lines > TOO_LONG.get(source, 400):
        long[source] = lines
    for node in ast.walk(tree_of(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = f"{source}::{node.name}"
            lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            if lines > TOO_LONG.get(name, 60):
                long[name] = lines
    assert long == {}
