"""Reads the text of a run, each part with its split.

A part of the source is validation text, as :mod:`cpulm.data.holdout` chooses it. If there is a separate
validation text, the whole source is training text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, NamedTuple

from cpulm.data.holdout import DocumentSizes, HeldOut, name_hash
from cpulm.data.losses import Losses
from cpulm.data.marks import Mark
from cpulm.data.readers import is_binary, read_files
from cpulm.data.reading import DocumentChunk, Reading
from cpulm.data.sources import SourceFile
from cpulm.errors import DataError
from cpulm.progress import Stage

Split = Literal["train", "val"]

MINIMUM_CHARACTERS = 64
"""Less text than this is treated as a mistake: there is nothing to learn from it."""
_DIGEST_BYTES = 8


class SplitText(NamedTuple):
    """Text of one document for one split; ``ends`` marks the end of the document, or of its training part.

    ``marks`` and ``values`` are those of the :class:`DocumentChunk`.
    """

    split: Split
    document: int
    text: str
    ends: bool
    source_bytes: int
    marks: tuple[Mark, ...] = ()
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """The text of a run, scanned once: its files and how it is split.

    Attributes:
        files: readable files of the source.
        val_files: readable files of the validation text, empty if the source is split.
        held_out: what of the source is validation text; None if there are ``val_files``.
        losses: what reading it all loses.
        share: the part of ``files`` that is used.
        characters: every character that occurs, if requested.
        left_out: the numbers of documents of ``files`` and of ``val_files`` that were there before.
    """

    files: tuple[SourceFile, ...]
    val_files: tuple[SourceFile, ...]
    held_out: HeldOut | None
    reading: Reading
    losses: Losses
    share: float
    characters: frozenset[str] = frozenset()
    left_out: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())

    @property
    def source_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in (*self.files, *self.val_files))

    def parts(self) -> Iterator[SplitText]:
        """Yield all text, in order, each part with its split; then copies of what an epoch has several times.

        No copy is validation text. Copies are documents of their own.
        """
        documents, copies = 0, 1
        turn = 0
        while turn < copies:
            number, border = -1, None
            for number, piece, begins_at, times in _numbered(self.files, self.reading, share=self.share):
                copies = max(copies, times)
                if number in self.left_out[0] or times <= turn:
                    continue
                if begins_at == 0 and self.held_out is not None:
                    border = self.held_out.border(number, piece.name)
                if border is None:
                    parts = iter((_whole("train", documents + number, piece),))
                else:
                    parts = _cut(documents + number, piece, border - begins_at)
                yield from parts if turn == 0 else _copies(parts)
            documents, turn = documents + number + 1, turn + 1
        for val_number, piece, _, _ in _numbered(self.val_files, self.reading):
            if val_number in self.left_out[1]:
                continue
            yield _whole("val", documents + val_number, piece)


def _copies(parts: Iterable[SplitText]) -> Iterator[SplitText]:
    """The training text among ``parts``, whose bytes were counted before."""
    return (part._replace(source_bytes=0) for part in parts if part.split == "train")


def _whole(split: Split, number: int, piece: DocumentChunk) -> SplitText:
    return SplitText(split, number, *piece[1:])


def _cut(number: int, piece: DocumentChunk, border: int) -> Iterator[SplitText]:
    """Cut the chunk at ``border``, in characters from its beginning: the rest is validation text.

    The training part ends there as a document does, so that it does not run into the next one. A chunk with
    marks is never cut within.
    """
    if border <= 0:
        yield _whole("val", number, piece)
        return
    train, val = piece.text[:border], piece.text[border:]
    yield SplitText("train", number, train, piece.ends or len(train) == border, piece.source_bytes)
    if val:
        yield SplitText("val", number, val, piece.ends, 0)


@dataclass
class _Scan:
    sizes: DocumentSizes = field(default_factory=DocumentSizes)
    characters: int = 0
    alphabet: set[str] = field(default_factory=set)
    left_out: set[int] = field(default_factory=set)


def readable(files: Sequence[SourceFile], how: Reading) -> tuple[list[SourceFile], list[str]]:
    """Return the files that hold text, and the names of the binary ones.

    Raises:
        DataError: if the user named a binary file itself, or all files are binary.
    """
    text_files: list[SourceFile] = []
    skipped: list[str] = []
    for file in files:
        if not is_binary(file, how):
            text_files.append(file)
        elif file.named:
            raise DataError(
                f"{file.shown} is a binary file: it holds NUL bytes", "give text, or unpack archives"
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
    share: float,
    how: Reading,
    dedup: bool,
    collect_characters: bool,
    stage: Stage,
) -> Corpus:
    """Read everything once: check that it can be read, count it, and decide the split.

    Args:
        files: of the source, as :func:`readable` gives them.
        val_files: of the validation text, empty if the source is to be split.
        share: the part of ``files`` to use, in (0, 1].
        dedup: whether to leave out documents that were there before, in the validation text first. Eight
            bytes of each text's digest are kept.
        collect_characters: whether to note every character that occurs.
        stage: counts the bytes read.

    Raises:
        DataError: if a file cannot be used, or there is too little text.
    """
    main, val, losses = _Scan(), _Scan(), Losses()
    known: set[bytes] | None = set() if dedup else None
    for files_here, seen, part in ((val_files, val, 1.0), (files, main, share)):
        pieces = _numbered(files_here, how, losses, share=part)
        _scan_pieces(pieces, seen, losses, known, collect_characters, stage)
        check_enough(files_here, seen.characters, part)
    return Corpus(
        files=tuple(files),
        val_files=tuple(val_files),
        held_out=None if val_files else main.sizes.hold_out(val_fraction, whole=how.rows_are_whole),
        reading=how,
        losses=losses,
        share=share,
        characters=frozenset(main.alphabet | val.alphabet),
        left_out=(frozenset(main.left_out), frozenset(val.left_out)),
    )


def check_enough(files: Sequence[SourceFile], characters: int, share: float = 1.0) -> None:
    """Refuse text of which so many characters are used, if that is hardly any.

    Raises:
        DataError: if there is too little text.
    """
    if characters < MINIMUM_CHARACTERS and files:
        chosen = f" where data.share is {share:g}" if share < 1 else ""
        raise DataError(
            f"{_describe(files)} has {characters} characters of text{chosen}: too little to learn from",
            "use more of it: --set data.share=1" if share < 1 else "give more text",
        )


def _scan_pieces(
    pieces: Iterable[tuple[int, DocumentChunk, int, int]],
    seen: _Scan,
    losses: Losses,
    known: set[bytes] | None,
    collect: bool,
    stage: Stage,
) -> None:
    size, hasher = 0, hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for number, piece, begins_at, _ in pieces:
        stage.advance(piece.source_bytes)
        size += len(piece.text) if piece.text.isascii() else len(piece.text.encode())
        if collect:
            seen.alphabet.update(piece.text)
        if known is not None:
            hasher.update(piece.text.encode())
        if not piece.ends:
            continue
        digest = hasher.digest()
        if known is not None and digest in known:
            seen.left_out.add(number)
            losses.duplicates += 1
        else:
            seen.characters += begins_at + len(piece.text)
            seen.sizes.add(number, piece.name, begins_at + len(piece.text), size)
        if known is not None:
            known.add(digest)
            hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        size = 0


def _numbered(
    files: Sequence[SourceFile], how: Reading, losses: Losses | None = None, share: float = 1.0
) -> Iterator[tuple[int, DocumentChunk, int, int]]:
    """Yield each chunk that is used, its document's number and characters before it, and how often it is."""
    number, begins_at = 0, 0
    for weight, alike in groupby(files, key=lambda file: file.weight):
        for piece, times in _weighted(read_files(list(alike), how, losses), weight * share):
            yield number, piece, begins_at, times
            begins_at += len(piece.text)
            if piece.ends:
                number, begins_at = number + 1, 0


def _weighted(pieces: Iterable[DocumentChunk], weight: float) -> Iterator[tuple[DocumentChunk, int]]:
    """Yield chunks with how often each is used; if that differs, each is a document with its own name."""
    certain, place, skipped_bytes = int(weight), 0, 0
    for piece in pieces:
        if weight == certain:
            yield piece, certain
            continue
        name = f"{piece.name}#{place}" if place else piece.name
        if times := certain + (name_hash(f"share of {name}") < weight - certain):
            read = piece.source_bytes + skipped_bytes
            yield piece._replace(name=name, ends=True, source_bytes=read), times
            skipped_bytes = 0
        else:
            skipped_bytes += piece.source_bytes
        place = 0 if piece.ends else place + 1


def _describe(files: Sequence[SourceFile]) -> str:
    return str(files[0].path) if len(files) == 1 else f"the text in {len(files)} files"
