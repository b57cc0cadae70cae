"""Reads the text of a run, each part with its split.

A part of the source is validation text, as :mod:`cpulm.data.holdout` chooses it. If there is a separate
validation text, the whole source is training text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cpulm.data.holdout import HeldOut, name_hash, name_hashes
from cpulm.data.joined import rejoined, separated
from cpulm.data.losses import Losses
from cpulm.data.marks import Mark
from cpulm.data.readers import is_binary, read_file
from cpulm.data.reading import DocumentBlock, DocumentChunk, Reading
from cpulm.data.sources import SourceFile
from cpulm.data.stretches import has_batches, has_stretches, stretches
from cpulm.errors import DataError

Split = Literal["train", "val"]

MINIMUM_CHARACTERS = 64
"""Less text than this is treated as a mistake: there is nothing to learn from it."""


class FilePlace(NamedTuple):
    """Where a file begins in the text of a run.

    ``turn`` counts the passes over the files, of which the last reads the validation text; ``number``
    documents are before the file in its turn, and ``before`` are before the turn.
    """

    turn: int = 0
    file: int = 0
    number: int = 0
    before: int = 0


BEGIN = FilePlace()


class SplitText(NamedTuple):
    """Text of one document for one split; ``ends`` marks the end of the document, or of its training part.

    ``place`` is that of its file; ``marks`` and ``values`` are those of the :class:`DocumentChunk`.
    """

    place: FilePlace
    split: Split
    document: int
    text: str
    ends: bool
    source_bytes: int
    marks: tuple[Mark, ...] = ()
    values: tuple[str, ...] = ()


class SplitBlock(NamedTuple):
    """Whole documents without marks for one split, with their numbers; as a :class:`DocumentBlock` else."""

    place: FilePlace
    split: Split
    documents: Sequence[int]
    data: bytes
    source_bytes: int
    values: tuple[Sequence[str], ...] = ()

    def each(self) -> Iterator[SplitText]:
        """The documents one by one, with equal parts of the bytes that were read."""
        each, rest = divmod(self.source_bytes, len(self.documents))
        values = zip(*self.values, strict=True) if self.values else repeat(())
        for document, text, its_values in zip(self.documents, separated(self.data), values, strict=False):
            yield SplitText(
                self.place, self.split, document, text.decode(), True, each + rest, (), its_values
            )
            rest = 0


@dataclass(frozen=True)
class Corpus:
    """The text of a run, scanned once: its files and how it is split.

    Attributes:
        files: readable files of the source.
        val_files: readable files of the validation text, empty if the source is split.
        held_out: what of the source is validation text; None if there are ``val_files``.
        losses: what reading it all loses.
        share: the part of ``files`` that is used.
        turns: how often the files are read: a document may be used so often.
        characters: every character that occurs, if requested.
        left_out: the numbers of documents of ``files`` and of ``val_files`` that were there before.
    """

    files: tuple[SourceFile, ...]
    val_files: tuple[SourceFile, ...]
    held_out: HeldOut | None
    reading: Reading
    losses: Losses
    share: float
    turns: int
    characters: frozenset[str] = frozenset()
    left_out: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())

    @property
    def source_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in (*self.files, *self.val_files))

    def parts(self) -> Iterator[SplitText]:
        """Yield all text as :meth:`blocks`, document by document."""
        for part in self.blocks():
            yield from (part,) if isinstance(part, SplitText) else part.each()

    def blocks(self, start: FilePlace = BEGIN) -> Iterator[SplitText | SplitBlock]:
        """Yield all text, each part with its split; then copies of what an epoch has several times.

        The documents of a split come in their order. No copy is validation text. Copies are documents of
        their own.

        Args:
            start: the file to begin with.
        """
        place = start
        while place.turn < self.turns:
            border, last = None, place.number - 1
            for one in self._source(place):
                if one.file != place.file:
                    place = place._replace(file=one.file, number=one.number)
                last = one.last
                if one.times <= place.turn:
                    continue
                parts: Iterable[SplitText | SplitBlock]
                if isinstance(one, ChosenBlock):
                    threshold = self.held_out.threshold if self.held_out is not None else -1.0
                    parts = _by_split(place, one, self.left_out[0], threshold)
                elif one.number in self.left_out[0]:
                    continue
                else:
                    if one.begins_at == 0 and self.held_out is not None:
                        border = self.held_out.border(one.number, one.piece.name)
                    if border is None:
                        parts = (_whole(place, "train", one.number, one.piece),)
                    else:
                        parts = _cut(place, one.number, one.piece, border - one.begins_at)
                yield from parts if place.turn == 0 else _copies(parts)
            place = FilePlace(place.turn + 1, before=place.before + last + 1)
        for one in numbered(self.val_files, self.reading.once, start=place):
            if one.file != place.file:
                place = place._replace(file=one.file, number=one.number)
            if isinstance(one, ChosenBlock):
                yield from _by_split(place, one, self.left_out[1], threshold=1.0)
            elif one.number not in self.left_out[1]:
                yield _whole(place, "val", one.number, one.piece)

    def _source(self, start: FilePlace) -> Iterator[Chosen | ChosenBlock]:
        """What is used of ``files``; a block in which a document is cut comes one by one."""
        cut = self.held_out.borders.keys() if self.held_out is not None else set()
        for one in numbered(self.files, self.reading, share=self.share, start=start):
            if isinstance(one, ChosenBlock) and not cut.isdisjoint(range(one.number, one.last + 1)):
                yield from one.each()
            else:
                yield one


def _by_split(
    place: FilePlace, one: ChosenBlock, left_out: frozenset[int], threshold: float
) -> Iterator[SplitBlock]:
    """The documents of a block by their splits; those whose name's hash is at most ``threshold`` validate."""
    file, numbers, data, read, values = one.block
    documents = range(place.before + one.number, place.before + one.last + 1)
    if threshold < 0 and not left_out:
        yield SplitBlock(place, "train", documents, data, read, values)
        return
    is_val = name_hashes(file, numbers) <= threshold
    known = [number in left_out for number in range(one.number, one.last + 1)]
    splits: tuple[tuple[Split, npt.NDArray[np.bool_]], ...] = (("train", ~is_val), ("val", is_val))
    for split, chosen in splits:
        its = (chosen & ~np.array(known)).tolist()
        if all(its):
            yield SplitBlock(place, split, documents, data, read, values)
        elif any(its):
            yield SplitBlock(place, split, *_picked(documents, data, its), read, _picked_values(values, its))
        else:
            continue
        read = 0


def _picked(documents: Sequence[int], data: bytes, its: Sequence[bool]) -> tuple[list[int], bytes]:
    """The numbers and the text of some of the documents."""
    return list(compress(documents, its)), rejoined(list(compress(separated(data), its)))


def _picked_values(values: tuple[Sequence[str], ...], its: Sequence[bool]) -> tuple[Sequence[str], ...]:
    return tuple(list(compress(column, its)) for column in values)


def _copies(parts: Iterable[SplitText | SplitBlock]) -> Iterator[SplitText | SplitBlock]:
    """The training text among ``parts``, whose bytes were counted before."""
    return (part._replace(source_bytes=0) for part in parts if part.split == "train")


def _whole(place: FilePlace, split: Split, number: int, piece: DocumentChunk) -> SplitText:
    return SplitText(place, split, place.before + number, *piece[1:-1])


def _cut(place: FilePlace, number: int, piece: DocumentChunk, border: int) -> Iterator[SplitText]:
    """Cut the chunk at ``border``, in characters from its beginning: the rest is validation text.

    The training part ends there as a document does, so that it does not run into the next one. A chunk with
    marks is never cut within.
    """
    if border <= 0:
        yield _whole(place, "val", number, piece)
        return
    document, train, val = place.before + number, piece.text[:border], piece.text[border:]
    ends = piece.ends or len(train) == border
    yield SplitText(place, "train", document, train, ends, piece.source_bytes)
    if val:
        yield SplitText(place, "val", document, val, piece.ends, 0)


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


def check_enough(
    files: Sequence[SourceFile], characters: int, share: float = 1.0, losses: Losses | None = None
) -> None:
    """Refuse text of which so many characters are used, if that is hardly any.

    Raises:
        DataError: if there is too little text; it says what was left out of it.
    """
    if characters < MINIMUM_CHARACTERS and files:
        where = files[0].at if len(files) == 1 else f"the text in {len(files)} files"
        chosen = f" where data.share is {share:g}" if share < 1 else ""
        left_out = [*losses.choices_in_words(), *losses.in_words()] if losses else []
        hint = "choose other rows: --where" if losses and losses.filtered else "give more text"
        raise DataError(
            "; ".join(
                [f"{where} has {characters} characters of text{chosen}: too little to learn from", *left_out]
            ),
            "use more of it: --set data.share=1" if share < 1 else hint,
        )


class Chosen(NamedTuple):
    """A chunk that is used: its file's number, its document's, the characters before it, how often it is."""

    file: int
    number: int
    piece: DocumentChunk
    begins_at: int
    times: int

    @property
    def last(self) -> int:
        """The number of the last document, as of a block."""
        return self.number


class ChosenBlock(NamedTuple):
    """Documents that are used: their file's number, the first one's, and how often each is."""

    file: int
    number: int
    block: DocumentBlock
    times: int

    @property
    def last(self) -> int:
        """The number of the last document."""
        return self.number + len(self.block.numbers) - 1

    def each(self) -> Iterator[Chosen]:
        """The documents one by one."""
        for number, piece in enumerate(self.block.chunks(), self.number):
            yield Chosen(self.file, number, piece, 0, self.times)


def numbered(
    files: Sequence[SourceFile],
    how: Reading,
    losses: Losses | None = None,
    *,
    share: float = 1.0,
    start: FilePlace = BEGIN,
    begin_file: Callable[[int, int], None] = lambda _file, _number: None,
) -> Iterator[Chosen | ChosenBlock]:
    """Yield each chunk and block of ``files`` that is used, from the file ``start`` on.

    Args:
        begin_file: called before a file is read, with its number and that of its first document.
    """
    number, begins_at, skipped_bytes = start.number, 0, 0
    for file in range(start.file, len(files)):
        begin_file(file, number)
        for piece, times in _used(files, file, how, losses, share):
            if not times:
                skipped_bytes += piece.source_bytes
                continue
            if skipped_bytes:
                piece = piece._replace(source_bytes=piece.source_bytes + skipped_bytes)
                skipped_bytes = 0
            if isinstance(piece, DocumentBlock):
                yield ChosenBlock(file, number, piece, times)
                number += len(piece.numbers)
                continue
            yield Chosen(file, number, piece, begins_at, times)
            begins_at += len(piece.text)
            if piece.ends:
                number, begins_at = number + 1, 0


def _used(
    files: Sequence[SourceFile], number: int, how: Reading, losses: Losses | None, share: float
) -> Iterator[tuple[DocumentChunk | DocumentBlock, int]]:
    """Yield chunks of one of ``files`` with how often each is used; most that are not used are not read."""
    file = files[number]
    often = file.weight * share
    if often < 1 and has_batches(file, how):
        yield from _weighted(read_file(files, number, how._replace(share=often), losses), 1.0)
        return
    if often >= 1 or not has_stretches(file, how):
        yield from _weighted(read_file(files, number, how, losses), often)
        return
    skipped_bytes = 0
    for stretch in stretches(file, how, often):
        skipped_bytes += stretch.skipped_bytes
        for piece, times in _weighted(read_file(files, number, how, losses, stretch.file), 1.0):
            yield piece._replace(source_bytes=piece.source_bytes + skipped_bytes), times
            skipped_bytes = 0


def _weighted(
    pieces: Iterable[DocumentChunk | DocumentBlock], weight: float
) -> Iterator[tuple[DocumentChunk | DocumentBlock, int]]:
    """Yield chunks with how often each is used; if that differs, each is a document with its own name."""
    place = 0
    for piece in pieces:
        if isinstance(piece, DocumentBlock):
            if weight == int(weight):
                yield piece, int(weight)
            elif weight < 1:
                yield _share_of(piece, weight)
            else:
                yield from _weighted(piece.chunks(), weight)
            continue
        often = weight * piece.weight
        certain = int(often)
        if often == certain:
            yield piece, certain
            continue
        name = f"{piece.name}#{place}" if place else piece.name
        times = certain + (name_hash(f"share of {name}") < often - certain)
        yield piece._replace(name=name, ends=True), times
        place = 0 if piece.ends else place + 1


def _share_of(block: DocumentBlock, share: float) -> tuple[DocumentBlock, int]:
    """The documents of a block that :func:`_weighted` chooses; if there are none, the block, not used."""
    file, numbers, data, read, values = block
    its = (name_hashes(f"share of {file}", numbers) < share).tolist()
    if not any(its):
        return block, 0
    return DocumentBlock(file, *_picked(numbers, data, its), read, _picked_values(values, its)), 1
