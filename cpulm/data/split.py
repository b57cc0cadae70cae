"""Decides which part of the text is for training and which for validation.

With fewer than 50 documents the last part of each is validation. From 50 on, whole documents are chosen by
a hash of their names, so a document's split never depends on the others. If there is a separate validation
text, everything else is training text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from cpulm.data.readers import DocumentChunk, Errors, is_binary, read_chunks
from cpulm.data.sources import SourceFile
from cpulm.errors import DataError
from cpulm.progress import Stage

Split = Literal["train", "val"]

FEW_DOCUMENTS = 50
MINIMUM_CHARACTERS = 64
"""Less text than this is treated as a mistake: there is nothing to learn from it."""


class SplitText(NamedTuple):
    """Text of one document for one split; ``ends`` marks the document's end."""

    split: Split
    document: int
    text: str
    ends: bool
    source_bytes: int


@dataclass(frozen=True)
class Corpus:
    """The text of a run, scanned once: its files and how it is split.

    Attributes:
        files: readable files of the source.
        val_files: readable files of the validation text, empty if the source is split.
        lengths: characters of each document, by number, if there are few documents; else empty.
        threshold: if there are many documents, those of the source whose hash is at most this are
            validation; negative: none.
        characters: every character that occurs, if requested.
    """

    files: tuple[SourceFile, ...]
    val_files: tuple[SourceFile, ...]
    lengths: tuple[int, ...]
    threshold: float
    val_fraction: float
    field: str
    errors: Errors
    characters: frozenset[str] = frozenset()

    @property
    def source_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in (*self.files, *self.val_files))

    def parts(self) -> Iterator[SplitText]:
        """Yield all text, in order, each part with its split."""
        held_out = bool(self.val_files)
        number = -1
        for number, piece, begins_at in _numbered(self.files, self.field, self.errors):
            if held_out:
                yield SplitText("train", number, piece.text, piece.ends, piece.source_bytes)
            elif self.lengths:
                yield from self._cut(number, piece, begins_at)
            else:
                split: Split = "val" if name_hash(piece.name) <= self.threshold else "train"
                yield SplitText(split, number, piece.text, piece.ends, piece.source_bytes)
        for val_number, piece, _ in _numbered(self.val_files, self.field, self.errors):
            yield SplitText("val", number + 1 + val_number, piece.text, piece.ends, piece.source_bytes)

    def _cut(self, number: int, piece: DocumentChunk, begins_at: int) -> Iterator[SplitText]:
        """Cut the chunk where its document's validation part begins."""
        border = int(self.lengths[number] * (1 - self.val_fraction))
        inside = min(max(border - begins_at, 0), len(piece.text))
        train, val = piece.text[:inside], piece.text[inside:]
        if train:
            yield SplitText("train", number, train, piece.ends and not val, piece.source_bytes)
        if val:
            yield SplitText("val", number, val, piece.ends, 0 if train else piece.source_bytes)


@dataclass
class _Scan:
    documents: int = 0
    characters: int = 0
    lengths: list[int] = field(default_factory=list)
    lowest: float = 2.0
    highest: float = -1.0
    alphabet: set[str] = field(default_factory=set)


def readable(files: Sequence[SourceFile]) -> tuple[list[SourceFile], list[str]]:
    """Return the files that hold text, and the names of the binary ones.

    Raises:
        DataError: if the user named a binary file itself, or all files are binary.
    """
    text_files: list[SourceFile] = []
    skipped: list[str] = []
    for file in files:
        if not is_binary(file):
            text_files.append(file)
        elif file.named:
            raise DataError(
                f"{file.path} is a binary file: it holds NUL bytes",
                "give text in UTF-8: convert UTF-16, unpack archives",
            )
        else:
            skipped.append(file.name)
    if files and not text_files:
        raise DataError(
            f"nothing here is readable text: all files are binary, such as {skipped[0]}", "give text in UTF-8"
        )
    return text_files, skipped


def scan(
    files: Sequence[SourceFile],
    val_files: Sequence[SourceFile],
    *,
    val_fraction: float,
    field: str,
    errors: Errors,
    collect_characters: bool,
    stage: Stage,
) -> Corpus:
    """Read everything once: check that it can be read, count it, and decide the split.

    Args:
        files: of the source, as :func:`readable` gives them.
        val_files: of the validation text, empty if the source is to be split.
        collect_characters: whether to note every character that occurs.
        stage: counts the bytes read.

    Raises:
        DataError: if a file cannot be used, or there is too little text.
    """
    main, val = _Scan(), _Scan()
    for files_here, seen in ((files, main), (val_files, val)):
        _scan_files(files_here, seen, field, errors, collect_characters, stage)
        if seen.characters < MINIMUM_CHARACTERS and files_here:
            raise DataError(
                f"{_describe(files_here)} has {seen.characters} characters of text: too little to learn from",
                "give more text",
            )
    few = main.documents < FEW_DOCUMENTS and not val_files
    # At least one document on each side, whatever the fraction.
    threshold = max(val_fraction, main.lowest)
    if threshold >= main.highest:
        threshold = (main.lowest + main.highest) / 2
    return Corpus(
        files=tuple(files),
        val_files=tuple(val_files),
        lengths=tuple(main.lengths) if few else (),
        threshold=threshold,
        val_fraction=val_fraction,
        field=field,
        errors=errors,
        characters=frozenset(main.alphabet | val.alphabet),
    )


def name_hash(name: str) -> float:
    """Map a name to a number in [0, 1) that depends on nothing else."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)


def _scan_files(
    files: Sequence[SourceFile], seen: _Scan, field: str, errors: Errors, collect: bool, stage: Stage
) -> None:
    for number, piece, begins_at in _numbered(files, field, errors):
        if begins_at == 0:
            seen.documents = number + 1
            value = name_hash(piece.name)
            seen.lowest, seen.highest = min(seen.lowest, value), max(seen.highest, value)
        seen.characters += len(piece.text)
        if piece.ends and number < FEW_DOCUMENTS:
            seen.lengths.append(begins_at + len(piece.text))
        if collect:
            seen.alphabet.update(piece.text)
        stage.advance(piece.source_bytes)


def _numbered(
    files: Sequence[SourceFile], field: str, errors: Errors
) -> Iterator[tuple[int, DocumentChunk, int]]:
    """Yield each chunk with its document's number and the document's characters before it."""
    number, begins_at = 0, 0
    for file in files:
        for piece in read_chunks(file, field, errors):
            yield number, piece, begins_at
            begins_at += len(piece.text)
            if piece.ends:
                number, begins_at = number + 1, 0


def _describe(files: Sequence[SourceFile]) -> str:
    return str(files[0].path) if len(files) == 1 else f"the text in {len(files)} files"
