"""The cache of compiled libraries: which are kept, refused or removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kernel_builds import BuildKernels

from cpulm.native import library, library_cache
from cpulm.native.kernels import Kernels
from cpulm.native.library import KernelsUnavailableError, compile_kernels
from cpulm.system.machine import read_machine
from cpulm.system.software import Compiler

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is compiled on Windows")

COMPILER = """#!/bin/sh
echo "$0 $*" >> "$0.calls"
while [ $# -gt 0 ]; do [ "$1" = -o ] && echo code > "$2"; shift; done
"""
CALLS = len(library.UNITS) + 1
"""Of the compiler for one library: one for each unit, and one that links."""


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """A program that takes GCC's options and writes four letters at once."""
    path = tmp_path / "c++"
    path.write_text(COMPILER)
    path.chmod(0o755)
    return path


def calls(compiler: Path) -> int:
    log = Path(f"{compiler}.calls")
    return len(log.read_text().splitlines()) if log.exists() else 0


def compiled(compiler: Path, cache: Path) -> tuple[Path, str]:
    return compile_kernels(str(compiler), "1", "a CPU", cache)


def test_a_library_is_compiled_once(compiler: Path, tmp_path: Path) -> None:
    first, note = compiled(compiler, tmp_path / "cache")
    assert (first.read_text(), note, calls(compiler)) == ("code\n", "", CALLS)
    assert compiled(compiler, tmp_path / "cache") == (first, "")
    assert calls(compiler) == CALLS


@pytest.mark.parametrize("content", [b"", b"co", b"code\n\0", b"codE\n"], ids=repr)
def test_a_damaged_library_is_compiled_again(compiler: Path, tmp_path: Path, content: bytes) -> None:
    first, _ = compiled(compiler, tmp_path / "cache")
    first.write_bytes(content)
    again, note = compiled(compiler, tmp_path / "cache")
    assert again.read_text() == "code\n"
    assert "damaged" in note
    assert calls(compiler) == 2 * CALLS
    assert compiled(compiler, tmp_path / "cache") == (again, "")


def test_damaged_kernels_are_not_loaded(
    build_kernels: BuildKernels, gcc_like: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that is cut off killed the process that loaded it."""
    cache, kernels_library = tmp_path / "cache", build_kernels("-O0", instead_of="-O3")
    flags = [*(flag for flag in library._flags() if flag != "-O3"), "-O0"]
    monkeypatch.setattr(library, "_flags", lambda: flags)
    shutil.copytree(kernels_library.parent, cache)
    (cache / kernels_library.name).write_bytes(kernels_library.read_bytes()[:1000])
    path, note = compile_kernels(gcc_like.command, gcc_like.version, read_machine().cpu_identity, cache)
    assert "damaged" in note
    y, _ = Kernels(path).rms_norm(torch.ones(2, 64), torch.ones(64), 0.0)
    assert torch.equal(y, torch.ones(2, 64))


def test_everything_that_decides_the_code_decides_the_name(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, command = tmp_path / "cache", str(compiler)
    asked = ((command, "1", "a"), (command, "2", "a"), (command, "1", "b"), (f"{command} -m64", "1", "a"))
    found = {compile_kernels(*arguments, cache)[0].name for arguments in asked}
    flags, sources = library._flags(), library.sources()
    monkeypatch.setattr(library, "_flags", lambda: [*flags, "-O0"])
    found.add(compiled(compiler, cache)[0].name)
    monkeypatch.setattr(library, "_flags", lambda: flags)
    edited = tmp_path / "kernels.cpp"
    edited.write_text(sources[0].read_text() + "\n")
    monkeypatch.setattr(library, "sources", lambda: [edited, *sources[1:]])
    found.add(compiled(compiler, cache)[0].name)
    assert len(found) == 6


def test_all_sources_are_part_of_the_name() -> None:
    folder = Path(library.__file__).parent
    assert set(library.sources()) == {p for p in folder.iterdir() if p.suffix in (".cpp", ".h")}


def test_the_folder_is_private(compiler: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o755)
    compiled(compiler, cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert library_cache.find(cache, "none", ".so") == (None, "")


def test_a_library_that_others_may_write_is_refused(compiler: Path, tmp_path: Path) -> None:
    first, _ = compiled(compiler, tmp_path / "cache")
    first.chmod(0o666)
    again, note = compiled(compiler, tmp_path / "cache")
    assert "other users may write it" in note
    assert calls(compiler) == 2 * CALLS
    assert not again.stat().st_mode & 0o022


def test_a_link_is_refused(compiler: Path, tmp_path: Path) -> None:
    first, _ = compiled(compiler, tmp_path / "cache")
    elsewhere = first.rename(tmp_path / "elsewhere.so")
    first.symlink_to(elsewhere)
    assert "not a file" in compiled(compiler, tmp_path / "cache")[1]


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_refused(compiler: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, _ = compiled(compiler, cache)
    os.chown(first, 12345, -1)
    again, note = compiled(compiler, cache)
    assert "belongs to another user" in note
    assert again.stat().st_uid == os.getuid()
    os.chown(cache, 12345, -1)
    temporary, note = compiled(compiler, cache)
    assert cache not in temporary.parents
    assert "belongs to another user" in note
    assert "CPULM_CACHE" in note


def test_a_folder_that_cannot_be_made_is_replaced_for_this_process(compiler: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = (
        "import sys; from pathlib import Path; from cpulm.native.library import compile_kernels;"
        "path, note = compile_kernels(sys.argv[1], '1', 'a CPU', Path(sys.argv[2]));"
        "assert path.read_text() == 'code\\n'; print(path); print(note)"
    )
    command = [sys.executable, "-c", program, str(compiler), str(tmp_path / "file" / "kernels")]
    path, note = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert "set CPULM_CACHE to a folder of your own" in note
    assert not Path(path).parent.exists()  # it is gone with the process


def test_old_libraries_and_the_rest_of_killed_compilations_are_removed(
    compiler: Path, tmp_path: Path
) -> None:
    cache, now = tmp_path / "cache", time.time()
    cache.mkdir()
    for age in range(1, 8):
        (cache / f"kernels-{age}-0.so").touch()
        os.utime(cache / f"kernels-{age}-0.so", (now - age, now - age))
    for name, age in (("killed", 2 * 3600), ("running", 5)):
        folder = cache / f".kernels-{name}"
        folder.mkdir()
        (folder / "kernels.cpp.o").touch()
        os.utime(folder, (now - age, now - age))
    (cache / "other").touch()
    made, _ = compiled(compiler, cache)
    kept = {made.name, "kernels-1-0.so", "kernels-2-0.so", "kernels-3-0.so", ".kernels-running", "other"}
    assert {path.name for path in cache.iterdir()} == kept


def test_a_library_in_use_is_not_an_old_one(compiler: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, _ = compiled(compiler, cache)
    os.utime(first, (1, 1))
    for version in range(library_cache.KEPT):
        compiled(compiler, cache)
        compile_kernels(str(compiler), f"new {version}", "a CPU", cache)
    assert first.exists()


def test_a_compiler_may_have_options(compiler: Path, tmp_path: Path) -> None:
    compile_kernels(f"{compiler} g++", "1", "a CPU", tmp_path / "cache")
    for line in Path(f"{compiler}.calls").read_text().splitlines():
        assert line.startswith(f"{compiler} g++ -std=c++17")


@pytest.mark.parametrize(
    ("command", "message"), [("/bin/false", "false: failed"), ("/nowhere/c++", "No such file")]
)
def test_a_compiler_that_fails_says_why(tmp_path: Path, command: str, message: str) -> None:
    with pytest.raises(KernelsUnavailableError, match=message):
        compile_kernels(command, "0", "a CPU", tmp_path)
    assert list(tmp_path.iterdir()) == []
