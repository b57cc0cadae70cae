"""Resolves what a user names to files: paths, folders, globs, ``-``, ``hf:NAME``, ``builtin:python``."""

from __future__ import annotations

import errno
import fnmatch
import glob
import io
import os
import stat
import sysconfig
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from cpulm.cache_dir import expand_home
from cpulm.command import typed
from cpulm.data.own_folders import is_own_folder
from cpulm.data.packed import (
    Unpacked,
    format_suffix,
    is_compressed,
    open_archive,
    open_member,
    readable_members,
    unpacked,
)
from cpulm.data.saved_datasets import PREFIX, dataset_files, is_saved_dataset, saved_files
from cpulm.data.spool import STDIN, FileBytes, Spool, can_be_read_once, spool
from cpulm.data.tokenizer import KINDS
from cpulm.errors import DataError, SettingsError
from cpulm.events import Listener, Notice
from cpulm.settings import DataSettings, changed

BUILTIN_PYTHON = "builtin:python"
_BUILTIN_LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")


@dataclass
class Meter:
    """How far a packed file is read; its size is that of the packed file."""

    stream: Unpacked | None = None
    seen: int = 0

    def advance(self) -> int:
        """The bytes of the packed file that were read since the last call."""
        read = 0 if self.stream is None else self.stream.packed_read()
        new, self.seen = max(0, read - self.seen), max(read, self.seen)
        return new


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read; small, because there may be a million.

    Attributes:
        at: the path of the file.
        place: what tells the file from others: its real path; of what can be read only once, its content.
        name: its name in splits and messages: the path below the folder or glob that named it, with
            forward slashes; the file's own name if the user named the file itself.
        size: in bytes, when it was found; no more is read, whatever is added meanwhile.
        begin: where what is read begins in the file, if it is not packed.
        mtime_ns: when it was last modified.
        named: the user named this very file, so leaving it out would be a surprise.
        builtin: it belongs to ``builtin:python``.
        weight: how often an epoch has its text.
        spool: the content, if the file can be read only once.
        archive: the zip archive that holds it as ``member``; then ``at`` is the archive's path.
        meter: knows the last opened stream of a packed file, and so how far the file is read.
    """

    at: str
    place: str
    name: str
    size: int
    mtime_ns: int
    named: bool = False
    builtin: bool = False
    weight: float = 1.0
    begin: int = 0
    spool: Spool | None = field(default=None, compare=False)
    archive: zipfile.ZipFile | None = field(default=None, compare=False)
    member: zipfile.ZipInfo | None = field(default=None, compare=False)
    meter: Meter | None = field(default=None, compare=False)

    @property
    def shown(self) -> str:
        """The file in messages: its path, and its place in an archive or where it begins."""
        place = f" from byte {self.begin:,} on" if self.begin else ""
        return f"{self.at}{place}" if self.member is None else f"{self.at}/{self.member.filename}"

    @property
    def suffix(self) -> str:
        """The suffix that tells the format, in lower case, without that of a compression."""
        return format_suffix(self.name)

    @property
    def is_packed(self) -> bool:
        """Whether ``size`` is that of something compressed."""
        return self.member is not None or is_compressed(self.name)

    def open(self) -> io.BufferedReader:
        """Open the file, unpacked, from ``begin`` on, and to the size that it was found with.

        Raises:
            OSError: if it cannot be opened.
            DataError: if it cannot be unpacked.
        """
        if self.archive is not None and self.member is not None:
            stream = open_member(self.archive, self.member, self.name)
            if self.meter is not None:
                self.meter.stream = stream
            opened: io.BufferedReader = io.BufferedReader(stream)
        elif self.spool is None:
            opened = io.BufferedReader(FileBytes(self.at, io.FileIO(self.at), self.size, self.begin))
        else:
            kept, lock = self.spool.file, self.spool.lock
            opened = io.BufferedReader(FileBytes(self.name, kept, self.size, self.begin, shared=lock))
        if not is_compressed(self.name):
            return opened
        stream = unpacked(self.name, opened, self.size)
        if self.meter is not None and self.member is None:
            self.meter.stream = stream
        read_through: io.BufferedReader = io.BufferedReader(stream)
        return read_through


def find_files(
    sources: Sequence[str],
    emit: Listener = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    weights: Sequence[float] = (),
) -> list[SourceFile]:
    """Return the files that ``sources`` name, each once, in the order given and by name within one source.

    Inside a folder, hidden files and folders are left out, and so is what cpulm wrote; links to folders are
    not followed. What can be read only once is read here, to its end.

    Args:
        emit: receives a Notice of what is left out, and Progress while a pipe is read.
        should_stop: called while a pipe is read.
        weights: of the files of each source; empty: 1. A file that several name has the first's.

    Raises:
        DataError: if a source names nothing, or a file or folder cannot be read.
        ResourceError: if there is no space to keep what can be read only once.
        StoppedError: if ``should_stop`` returned True.
    """
    found: dict[str, SourceFile] = {}
    names: set[str] = set()
    own: list[Path] = []
    files: Iterable[SourceFile]
    for source, weight in zip(sources, weights or [1.0] * len(sources), strict=True):
        if can_be_read_once(source, _stat(expand_home(source))):
            kept = spool(source, emit, should_stop)
            name = "stdin" if source in STDIN else Path(source).name
            place = f"read once: {kept.digest}"
            files = [SourceFile(str(Path(source)), place, name, kept.size, 0, named=True, spool=kept)]
        else:
            files = (part for file in _resolve_source(source, own) for part in _with_members(file))
        for file in files:
            if file.place not in found:
                apart = _named_apart(file, names)
                found[file.place] = apart if apart.weight == weight else replace(apart, weight=weight)
                names.add(apart.name)
    if own:
        what = f"{len(own)} folders that cpulm wrote, such as" if len(own) > 1 else "what cpulm wrote:"
        emit(Notice(level="info", message=f"left out {what} {own[0]}"))
    return list(found.values())


def require_lasting_text(data: Sequence[DataSettings], who: str) -> None:
    """Refuse a pipe where several processes read the text, now and after a restart.

    Args:
        data: the settings of what reads.
        who: reads it, in words.

    Raises:
        SettingsError: naming the text that can be read only once.
    """
    for source in dict.fromkeys(one for each in data for one in (*each.source, *each.val_source)):
        if can_be_read_once(source, _stat(expand_home(source))):
            place = source if source in STDIN else typed(source)
            raise SettingsError(
                f"{who} reads the text more than once, and {source} can be read only once",
                f"keep it first: `cpulm tokenize {place} --out tokens`, then give the folder tokens",
            )


def absolute_sources(data: DataSettings) -> DataSettings:
    """The same settings with absolute paths, which mean the same from any folder."""

    def absolute(source: str) -> str:
        if source == "-" or source.startswith("builtin:") or not source.strip():
            return source
        if source.startswith(PREFIX):
            name, colon, rest = source.removeprefix(PREFIX).partition(":")
            is_folder = is_saved_dataset(expand_home(name))
            return f"{PREFIX}{absolute(name)}{colon}{rest}" if is_folder else source
        return str(expand_home(source).absolute())

    return changed(
        data,
        source=[absolute(source) for source in data.source],
        val_source=[absolute(source) for source in data.val_source],
        tokenizer=data.tokenizer if data.tokenizer in KINDS else absolute(data.tokenizer),
    )


def builtin_python() -> list[SourceFile]:
    """Return the source files of this machine's Python standard library, without its tests, sorted by name.

    Raises:
        DataError: if this Python comes without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        _source_file(path, path.relative_to(root).as_posix(), builtin=True)
        for path in _walk(root, [], _BUILTIN_LEFT_OUT)
        if path.suffix == ".py"
    ]
    if not files:
        raise DataError("this Python comes without the sources of its library", "give a text: --data FILE")
    return sorted(files, key=lambda file: file.name)


def _named_apart(file: SourceFile, names: set[str]) -> SourceFile:
    """The file with as much of its path in its name as tells it from ``names``: names decide the split."""
    if file.name not in names:
        return file
    parts = Path(file.at).absolute().parts
    depth, name = len(Path(file.name).parts), file.name
    while name in names and depth < len(parts):
        depth += 1
        name = "/".join(parts[-depth:])
    return replace(file, name=name)


def _resolve_source(source: str, own: list[Path]) -> Iterable[SourceFile]:
    if source == BUILTIN_PYTHON:
        return builtin_python()
    if source.startswith(PREFIX):
        return [_source_file(path, _dataset_name(path), named=True) for path in dataset_files(source)]
    if source.startswith("builtin:"):
        raise DataError(f"there is no built-in text {source!r}", f"the built-in text is {BUILTIN_PYTHON}")
    if not source.strip():
        raise DataError("a text has an empty name", "give a file or a folder; this folder is `.`")
    path = expand_home(source)
    if _stat(path) is None and glob.has_magic(source):
        fixed = Path(*_literal_prefix(path.parts))
        return _files_of(_matching(fixed, path.parts[len(fixed.parts) :], own), fixed, source, own)
    if _stat(path) is None:
        raise DataError(f"{source} does not exist", "give a file, a folder, a glob or builtin:python")
    if not stat.S_ISDIR(_mode(path)):
        return [_source_file(path, path.name, named=True)]
    if is_saved_dataset(path):
        return [_source_file(one, _dataset_name(one), named=True) for one in saved_files(path)]
    if is_own_folder(path):
        raise DataError(
            f"{source} holds what cpulm wrote or a model, not text", "give the text to learn from"
        )
    return _files_of(_walk(path, own), path, source, own)


def _dataset_name(path: Path) -> str:
    """The name of a file of a dataset, whose own are alike in all datasets: with the folder's."""
    return "/".join(path.absolute().parts[-2:])


def _files_of(paths: Iterator[Path], folder: Path, source: str, own: list[Path]) -> Iterator[SourceFile]:
    """The files at ``paths``, by their names below ``folder``."""
    found = {path.relative_to(folder).as_posix() for path in paths}
    if not found and glob.has_magic(source):
        raise DataError(f"no file matches {source!r}", "quote the pattern, and check it with ls")
    if not found:
        but = f" but what cpulm wrote, such as {own[0]}" if own else ""
        raise DataError(f"the folder {source} has no files{but}", "give a folder with text files")
    return (_source_file(folder / name, name) for name in sorted(found))


def _with_members(file: SourceFile) -> list[SourceFile]:
    """The members of a zip archive, each as a file; another file as it is."""
    if file.suffix != ".zip":
        return [file]
    archive = open_archive(file.at, file.open())
    return [
        replace(
            file,
            place=f"{file.place}!{member.filename}",
            name=f"{file.name}/{member.filename}",
            size=member.compress_size,
            named=False,
            archive=archive,
            member=member,
        )
        for member in readable_members(archive, file.name)
    ]


def _literal_prefix(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _matching(folder: Path, pattern: Sequence[str], own: list[Path]) -> Iterator[Path]:
    """Yield the files below ``folder`` that match; folders that cannot be listed are errors."""
    if not pattern:
        if _is_file(folder):
            yield folder
        return
    if not stat.S_ISDIR(_mode(folder)) or _left_out(folder, own):
        return
    part, rest = pattern[0], pattern[1:]
    if part == "**":
        yield from _matching(folder, rest or ["*"], own)
        for entry in _list(folder):
            if not entry.name.startswith(".") and not entry.is_symlink() and entry.is_dir():
                yield from _matching(folder / entry.name, pattern, own)
    elif glob.has_magic(part):
        for name in fnmatch.filter([entry.name for entry in _list(folder)], part):
            if part.startswith(".") or not name.startswith("."):
                yield from _matching(folder / name, rest, own)
    else:
        yield from _matching(folder / part, rest, own)


def _walk(folder: Path, own: list[Path], left_out: Sequence[str] = ()) -> Iterator[Path]:
    """Yield the files below ``folder``; what cpulm wrote is noted in ``own`` instead."""
    for where, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name not in left_out and not _left_out(Path(where) / name, own)
        ]
        for name in names:
            path = Path(where) / name
            if not name.startswith(".") and _is_file(path):
                yield path


def _left_out(folder: Path, own: list[Path]) -> bool:
    if not is_own_folder(folder):
        return False
    if folder not in own:
        own.append(folder)
    return True


def _list(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        _refuse_folder(error)


def _refuse_folder(error: OSError) -> NoReturn:
    raise DataError(
        f"cannot list the folder {error.filename}: {error.strerror}",
        "check its permissions, or name the folders beside it one by one",
    ) from error


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(_mode(path))


def _mode(path: Path) -> int:
    there = _stat(path)
    return 0 if there is None else there.st_mode


def _stat(path: Path) -> os.stat_result | None:
    """What the system says of ``path``; None if there is no such thing, or only a link to no such thing.

    Raises:
        DataError: if that cannot be known, as below a folder that may not be entered.
    """
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read {path}: {reason}", "check the path and its permissions") from error


def _source_file(path: Path, name: str, *, named: bool = False, builtin: bool = False) -> SourceFile:
    there = _stat(path)
    if there is None:
        raise DataError(f"cannot read {path}: it is gone", "run the command again")
    at, place = str(path), os.path.realpath(path)
    place = at if place == at else place  # one string in memory
    return SourceFile(at, place, name, there.st_size, there.st_mtime_ns, named, builtin)
