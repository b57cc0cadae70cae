"""Resolves what a user names to files: paths, folders, globs and ``builtin:python``."""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cpulm.errors import DataError

BUILTIN_PYTHON = "builtin:python"
_BUILTIN_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class SourceFile:
    """One file to read.

    Attributes:
        path: where the file is.
        name: its name in splits and messages: the path below the folder or glob that named it, with
            forward slashes; the file's own name if the user named the file itself.
        size: in bytes.
        mtime_ns: when it was last modified.
        named: the user named this very file, so leaving it out would be a surprise.
        builtin: it belongs to ``builtin:python``.
    """

    path: Path
    name: str
    size: int
    mtime_ns: int
    named: bool = False
    builtin: bool = False


def find_files(sources: Sequence[str]) -> list[SourceFile]:
    """Return the files that ``sources`` name, each once, in the order given and by name within one source.

    Hidden files and folders inside a folder are left out; links to folders are not followed.

    Raises:
        DataError: if a source names nothing.
    """
    found: dict[Path, SourceFile] = {}
    names: set[str] = set()
    for source in sources:
        for file in _resolve_source(source):
            place = file.path.resolve()
            if place not in found:
                # Names decide the split, so two files must not share one.
                found[place] = replace(file, name=file.path.as_posix()) if file.name in names else file
                names.add(file.name)
    return list(found.values())


def _resolve_source(source: str) -> list[SourceFile]:
    if source == BUILTIN_PYTHON:
        return builtin_python()
    if source.startswith("builtin:"):
        raise DataError(f"there is no built-in text {source!r}", f"the built-in text is {BUILTIN_PYTHON}")
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_below(path, source)
    if path.exists():
        return [_source_file(path, path.name, named=True)]
    if glob.has_magic(source):
        return _files_matching(str(path), source)
    raise DataError(f"{source} does not exist", "give a file, a folder, a glob or builtin:python")


def builtin_python() -> list[SourceFile]:
    """Return the source files of this machine's Python standard library, without its tests, sorted by name.

    Raises:
        DataError: if this Python comes without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        _source_file(path, path.relative_to(root).as_posix(), builtin=True)
        for path in _walk(root, _BUILTIN_LEFT_OUT)
        if path.suffix == ".py"
    ]
    if not files:
        raise DataError("this Python comes without the sources of its library", "give a text: --data FILE")
    return sorted(files, key=lambda file: file.name)


def _files_below(folder: Path, source: str) -> list[SourceFile]:
    files = [_source_file(path, path.relative_to(folder).as_posix()) for path in _walk(folder, frozenset())]
    if not files:
        raise DataError(f"the folder {source} has no files", "give a folder with text files")
    return sorted(files, key=lambda file: file.name)


def _files_matching(pattern: str, source: str) -> list[SourceFile]:
    fixed = Path(*_literal_prefix(Path(pattern).parts))
    paths = (Path(match) for match in glob.iglob(pattern, recursive=True))  # noqa: PTH207 - takes absolute patterns
    files = [_source_file(path, path.relative_to(fixed).as_posix()) for path in paths if path.is_file()]
    if not files:
        raise DataError(f"no file matches {source!r}", "quote the pattern, and check it with ls")
    return sorted(files, key=lambda file: file.name)


def _literal_prefix(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _walk(folder: Path, left_out: set[str] | frozenset[str]) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        for name in names:
            path = Path(where) / name
            if not name.startswith(".") and path.is_file():
                yield path


def _source_file(path: Path, name: str, *, named: bool = False, builtin: bool = False) -> SourceFile:
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}", "check the path and its permissions"
        ) from error
    return SourceFile(path, name, stat.st_size, stat.st_mtime_ns, named, builtin)
