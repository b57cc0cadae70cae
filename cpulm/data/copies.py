"""Keeps validation text out of the training text, and names texts that are there twice."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence

from cpulm.data.sources import SourceFile
from cpulm.errors import DataError
from cpulm.events import Listener, Notice
from cpulm.progress import Stage


def without_validation(
    files: Sequence[SourceFile], val_files: Sequence[SourceFile], emit: Listener
) -> list[SourceFile]:
    """Return the files that are not among the validation text.

    Raises:
        DataError: if there are none.
    """
    held_out = {file.place for file in val_files}
    kept = [file for file in files if file.place not in held_out]
    if files and not kept:
        raise DataError(
            "all of the training text is the validation text too",
            "leave out --val-data to hold out a part, or give another text",
        )
    if left_out := [file.name for file in files if file.place in held_out]:
        what = left_out[0] if len(left_out) == 1 else f"{len(left_out)} files, such as {left_out[0]}"
        emit(Notice(level="info", message=f"not trained on, because it is validation text: {what}"))
    return kept


def warn_of_copies(
    files: Sequence[SourceFile],
    val_files: Sequence[SourceFile],
    emit: Listener,
    should_stop: Callable[[], bool],
) -> None:
    """Warn of texts under two names, if one may be trained on and the other validated on.

    Only files of the same size are read. The built-in text is known, and not compared.

    Raises:
        DataError: if a file cannot be read.
        StoppedError: if ``should_stop`` returned True.
    """
    pairs = _copies(files, val_files, emit, should_stop)
    if not pairs:
        return
    first, second = pairs[0]
    others = len(pairs) - 1
    more = f", and so do {others:,} more pair{'s' * (others != 1)}" if others else ""
    emit(
        Notice(
            level="warning",
            message=f"{first} and {second} hold the same text{more}: the validation loss is too low if one "
            "is trained on and the other held out",
        )
    )


def _copies(
    files: Sequence[SourceFile],
    val_files: Sequence[SourceFile],
    emit: Listener,
    should_stop: Callable[[], bool],
) -> list[tuple[str, str]]:
    """The names of files with the same content: each with the first such file before it."""
    by_size: dict[int, tuple[list[SourceFile], list[SourceFile]]] = defaultdict(lambda: ([], []))
    for which, part in enumerate((files, val_files)):
        for file in part:
            if file.size and not file.builtin:
                by_size[file.size][which].append(file)
    alike = [(here, val) for here, val in by_size.values() if (val and here if val_files else len(here) > 1)]
    if not alike:
        return []
    pairs: list[tuple[str, str]] = []
    total = sum(here[0].size * (len(here) + len(val)) for here, val in alike)
    with Stage("comparing files", total, "bytes", emit, should_stop) as stage:
        for here, val in alike:
            first: dict[bytes, SourceFile] = {}
            for file in here:
                original = first.setdefault(_digest(file, stage), file)
                if original is not file and not val_files:
                    pairs.append((original.name, file.name))
            for file in val:
                same = first.get(_digest(file, stage))
                if same is not None:
                    pairs.append((same.name, file.name))
    return pairs


def _digest(file: SourceFile, stage: Stage) -> bytes:
    hasher = hashlib.blake2b(digest_size=16)
    try:
        with file.open() as handle:
            while chunk := handle.read(1 << 20):
                hasher.update(chunk)
                stage.advance(len(chunk))
    except OSError as error:
        raise DataError(f"cannot read {file.shown}: {error.strerror}", "check its permissions") from error
    return hasher.digest()
