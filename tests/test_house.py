"""The house: which room may import which, what a fresh interpreter loads, and how large a room may be.

:data:`ROOMS` is the only table; the map in CONTRIBUTING is held against it.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cpulm"
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("cpulm", "tests", "benchmarks", "scripts", "docs")
    for path in (ROOT / folder).rglob("*.py")
)

GROUND = (
    *("errors", "exit_codes", "units", "atomic", "cache_dir", "run_dir", "events", "progress", "interrupts"),
    *("command", "kernel_variants", "layer_shapes", "linked_functions", "settings", "preset_files"),
    *("typed_json", "regular_file", "file_lock", "yaml_file", "address_space"),
)
"""The ground, which every room may import; ``native`` only :data:`GROUND_OF_NATIVE`."""

GROUND_OF_NATIVE = ("atomic", "errors", "linked_functions")
"""Compiled libraries are written whole or not at all, and run on torch's threads; they know no settings."""

ROOMS: dict[str, tuple[int, str]] = {
    "native": (1, ""),
    "system": (2, ""),
    "runlog": (2, ""),
    "data": (2, ""),
    "model": (2, "native"),
    "optim": (2, "native"),
    "execution": (3, "system data model optim native"),
    "distributed": (3, "system data"),
    "pretrained": (3, "system data model"),
    "estimate": (3, "system model.counts optim.batch_size"),
    "generation": (3, "data model"),
    "runs": (3, "runlog system"),
    "ui": (3, "runlog"),
    "checkpoints": (4, "pretrained execution.rng data model optim.restore_state optim.weight_average"),
    "analysis": (
        4,
        "runs runlog estimate.scaling_law estimate.overfitting estimate.repeated_text estimate.learning_law",
    ),
    "sweep": (4, "runs estimate runlog data system"),
    "overnight": (4, "runs runlog system estimate.overfitting"),
    "evaluation": (5, "checkpoints generation execution data model system"),
    "export": (5, "checkpoints pretrained data model"),
    "inspection": (5, "checkpoints generation data model"),
    "training": (
        6,
        "evaluation checkpoints generation execution distributed pretrained estimate runs data model optim "
        "system",
    ),
    "serve": (6, "export overnight generation execution data model"),
    "benchmark": (7, "training estimate execution distributed data model optim system"),
    "api": (
        7,
        "training evaluation checkpoints generation execution ui overnight runlog data model system",
    ),
    "cli": (
        8,
        "api benchmark serve training evaluation export inspection analysis sweep overnight checkpoints "
        "pretrained distributed runs ui estimate generation execution runlog data model optim system native",
    ),
}
"""Every room: its floor, and what it may import beside the ground; ``a.b`` is one module of a room."""

WITHOUT_TORCH = ("system", "runlog", "estimate", "runs", "ui", "analysis", "sweep", "overnight")
"""Rooms that never load torch: a fresh interpreter that imports all of such a room has not loaded it."""

ONLY_IN = {
    "typer": ("cli",),
    "rich": ("ui",),
    "psutil": ("system",),
    "torch": (
        *("native", "model", "optim", "data", "execution", "generation", "checkpoints", "evaluation"),
        *("pretrained", "inspection", "training", "serve", "benchmark", "distributed"),
    ),
    "gguf": ("export", "pretrained"),
    "huggingface_hub": ("export",),
    "safetensors": ("export", "pretrained"),
    "starlette": ("serve",),
    "uvicorn": ("serve",),
}
"""Libraries that only some rooms import."""

SAME_THING = {"__init__", "__main__"}
"""File stems that may stand in several rooms, beside those of a room or of a subcommand."""

FUNCTION_LINES, FILE_LINES = 60, 400
"""What is longer has a second responsibility."""


def tree_of(source: str) -> ast.Module:
    return ast.parse((ROOT / source).read_text(encoding="utf-8"), source)


def room_of(module: str) -> str:
    """``cpulm.data.loader`` -> ``data``; ``ground`` for a module of the ground."""
    parts = module.split(".")
    if parts[-1] == "__main__":
        return "cli"
    return parts[1] if len(parts) > 1 and parts[1] not in GROUND else "ground"


def module_of(source: str) -> str:
    return source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(source): source for source in SOURCES if source.startswith("cpulm/")}


def names_imported(source: str, *, types: bool = False) -> set[str]:
    """Full names of all that a module imports, wherever in it: ``from a.b import c`` gives ``a.b.c``.

    Imports under ``if TYPE_CHECKING:`` only with ``types``: everyone may name a type.
    """
    tree = tree_of(source)
    for node in ast.walk(tree):
        if not types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


IMPORTS = {module: names_imported(source) for module, source in MODULES.items()}


def modules_imported(module: str, names: Iterable[str] | None = None) -> set[str]:
    """The modules of the package that ``module`` imports, its own room's and others', or those in
    ``names``."""
    found = set()
    for name in IMPORTS[module] if names is None else names:
        if name in MODULES:
            found.add(name)
        elif name.rpartition(".")[0] in MODULES and name != "cpulm.__version__":
            found.add(name.rpartition(".")[0])
    return found


def test_every_module_has_a_room() -> None:
    rooms = {room_of(module) for module in MODULES if module != "cpulm"}
    assert rooms - {"ground"} == set(ROOMS)
    ground = {module.split(".")[1] for module in MODULES if module != "cpulm" and room_of(module) == "ground"}
    assert ground == set(GROUND)


def test_a_room_may_import_only_from_floors_below_it() -> None:
    for room, (floor, may) in ROOMS.items():
        for other in may.split():
            assert ROOMS[other.split(".")[0]][0] < floor or (floor == 2 and other == "native"), (room, other)


def test_the_map_in_contributing_is_this_table() -> None:
    rows = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"\| (\d) \| `(\w+)/` \| [^|]+ \| ([^|]+) \|", line)
        if match and match[2] != "cli":
            rows[match[2]] = (int(match[1]), "" if match[3] == "-" else match[3].replace(",", ""))
    assert rows == {room: row for room, row in ROOMS.items() if room != "cli"}


def allowed(room: str, imported: str) -> bool:
    other = room_of(imported)
    if other == "ground":
        return room != "native" or imported.removeprefix("cpulm.") in GROUND_OF_NATIVE
    if other == room:
        return True
    may = [] if room == "ground" else ROOMS[room][1].split()
    return any(f"{imported}.".startswith(f"cpulm.{name}.") for name in may)


def test_imports_go_down() -> None:
    offenders = [
        f"{module} imports {imported}"
        for module in MODULES
        if module != "cpulm"
        for imported in sorted(modules_imported(module))
        if imported != "cpulm" and not allowed(room_of(module), imported)
    ]
    assert not offenders, "imports that the house forbids:\n" + "\n".join(offenders)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """One circle of the graph, or nothing."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for following in sorted(graph[node]):
            found = visit(following, [*path, node])
            if found:
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_no_imports_in_a_circle() -> None:
    """Not even for the sake of types."""
    graph = {
        module: modules_imported(module, names_imported(source, types=True)) - {"cpulm"}
        for module, source in MODULES.items()
    }
    assert " -> ".join(circle_in(graph)) == ""


def test_no_room_is_over_a_fifth_of_the_house() -> None:
    lines: Counter[str] = Counter()
    for module, source in MODULES.items():
        lines[room_of(module)] += (ROOT / source).read_text(encoding="utf-8").count("\n")
    assert {room: count for room, count in lines.items() if count > sum(lines.values()) / 5} == {}


def test_file_and_class_names_stand_once() -> None:
    """A stem may stand twice only if it is one thing seen from two floors: a room's or a command's name."""
    stems: defaultdict[str, list[str]] = defaultdict(list)
    classes: defaultdict[str, list[str]] = defaultdict(list)
    for module, source in MODULES.items():
        stems[Path(source).stem].append(module)
        for node in tree_of(source).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(module)
    seen = {Path(source).stem for source in MODULES.values() if source.startswith("cpulm/cli/")} | set(ROOMS)
    twice = {stem: where for stem, where in stems.items() if len(where) > 1 and stem not in SAME_THING | seen}
    assert twice == {}
    assert {name: where for name, where in classes.items() if len(where) > 1 and name[0] != "_"} == {}


@pytest.mark.parametrize(("library", "rooms"), ONLY_IN.items())
def test_some_libraries_are_imported_in_their_rooms_only(library: str, rooms: tuple[str, ...]) -> None:
    importers = [m for m in MODULES if any(n.split(".")[0] == library for n in IMPORTS[m])]
    assert importers, f"nobody imports {library}"
    assert [module for module in importers if room_of(module) not in rooms] == []


def loaded_after(program: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after ``program``."""
    code = f"{program}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def importing(modules: Iterable[str]) -> str:
    return "\n".join(f"import {module}" for module in sorted(modules))


def test_the_ground_needs_neither_torch_nor_numpy() -> None:
    loaded = loaded_after(importing(module for module in MODULES if room_of(module) == "ground"))
    assert {"torch", "numpy", "tokenizers", "rich", "typer", "psutil"} & loaded == set()


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_some_rooms_never_load_torch(room: str) -> None:
    assert "torch" not in loaded_after(importing(module for module in MODULES if room_of(module) == room))


def test_the_list_of_presets_needs_nothing_but_python() -> None:
    program = "from cpulm.preset_files import preset_names; assert preset_names()"
    outside = {name.split(".")[0] for name in loaded_after(program)}
    assert {"yaml", "pydantic", "rich", "typer"} & outside == set()


def test_every_module_says_what_it_is() -> None:
    assert [source for source in SOURCES if not ast.get_docstring(tree_of(source))] == []


def test_functions_and_files_are_small() -> None:
    """A function's signature is not counted: the options of a subcommand are its documentation."""
    long = {}
    for source in SOURCES:
        lines = (ROOT / source).read_text(encoding="utf-8").count("\n")
        if lines > FILE_LINES:
            long[source] = lines
        for node in ast.walk(tree_of(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{source}::{node.name}"] = lines
    assert long == {}
