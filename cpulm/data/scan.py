"""Reads the text of a run once: checks that it can be read, counts it, and decides the split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import compress
from typing import Any

from cpulm.data.holdout import DocumentSizes, name_hashes
from cpulm.data.joined import END_BYTE, lengths, separated, sizes
from cpulm.data.losses import Losses
from cpulm.data.reading import Reading
from cpulm.data.sources import SourceFile
from cpulm.data.split import BEGIN, Chosen, ChosenBlock, Corpus, FilePlace, check_enough, numbered
from cpulm.data.unfinished import Unfinished
from cpulm.progress import Stage

_DIGEST_BYTES = 8


@dataclass
class _Seen:
    """What was seen of the source, or of the validation text."""

    sizes: DocumentSizes = field(default_factory=DocumentSizes)
    characters: int = 0
    alphabet: set[str] = field(default_factory=set)
    left_out: set[int] = field(default_factory=set)

    def state(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {
            "sizes": self.sizes.state(),
            "characters": self.characters,
            "alphabet": "".join(self.alphabet),
            "left_out": list(self.left_out),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.sizes.restore(state["sizes"])
        self.characters = state["characters"]
        self.alphabet = set(state["alphabet"])
        self.left_out = set(state["left_out"])


class _Scan:
    """A scan under way, and where it is: in turn 0 the validation text is read, in turn 1 the source."""

    def __init__(self, stage: Stage, work: Unfinished, *, dedup: bool, collect: bool) -> None:
        self.seen = (_Seen(), _Seen())
        self.losses = Losses()
        self.place = BEGIN
        self.turns = 1
        self._known: set[bytes] | None = set() if dedup else None
        self._collect = collect
        self._stage = stage
        self._work = work
        if state := work.load("scan"):
            self.place, self.losses = FilePlace(*state["place"]), Losses(**state["losses"])
            self.turns = state["turns"]
            for seen, kept in zip(self.seen, state["seen"], strict=True):
                seen.restore(kept)
            if dedup:
                self._known = set(_parts(bytes.fromhex(state["known"])))
            stage.advance(state["read"])

    def keep_if_due(self) -> None:
        """Keep what was seen, every few seconds."""
        if not self._work.due():
            return
        state = {
            "place": self.place,
            "turns": self.turns,
            "losses": asdict(self.losses),
            "seen": [seen.state() for seen in self.seen],
            "known": b"".join(self._known or ()).hex(),
            "read": self._stage.done,
        }
        self._work.save("scan", state)

    def begin_file(self, file: int, number: int) -> None:
        """Note that all before this file was seen."""
        if file != self.place.file:
            self.place = self.place._replace(file=file, number=number)
            self.keep_if_due()

    def read(self, chunks: Iterable[Chosen | ChosenBlock]) -> None:
        """Take the chunks of a turn, from ``place`` on."""
        seen = self.seen[self.place.turn]
        size, hasher = 0, hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for one in chunks:
            self.turns = max(self.turns, one.times)
            if isinstance(one, ChosenBlock):
                self._read_block(seen, one)
                continue
            _, number, piece, begins_at, _ = one
            self._stage.advance(piece.source_bytes)
            size += len(piece.text) if piece.text.isascii() else len(piece.text.encode())
            if self._collect:
                seen.alphabet.update(piece.text)
            if self._known is not None:
                hasher.update(piece.text.encode())
            if not piece.ends:
                continue
            if not self._is_known(seen, number, hasher.digest()):
                seen.characters += begins_at + len(piece.text)
                seen.sizes.add(number, piece.name, begins_at + len(piece.text), size)
            if self._known is not None:
                hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
            size = 0

    def _read_block(self, seen: _Seen, one: ChosenBlock) -> None:
        """Take whole documents."""
        file, numbers, data, read, _ = one.block
        self._stage.advance(read)
        if self._collect:
            seen.alphabet.update(data.replace(END_BYTE, b"").decode())
        numbered = range(one.number, one.last + 1)
        columns: tuple[Sequence[Any], ...]
        columns = (
            numbered,
            name_hashes(file, numbers).tolist(),
            lengths(data).tolist(),
            sizes(data).tolist(),
        )
        if self._known is not None:
            digests = (hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest() for text in separated(data))
            fresh = [not self._is_known(seen, *one) for one in zip(numbered, digests, strict=True)]
            columns = tuple(list(compress(column, fresh)) for column in columns)
        seen.characters += sum(columns[2])
        seen.sizes.add_block(*columns)

    def _is_known(self, seen: _Seen, number: int, digest: bytes) -> bool:
        """Whether the text of a document was there before, if such are left out; it is known from now on."""
        if self._known is None:
            return False
        if digest in self._known:
            seen.left_out.add(number)
            self.losses.duplicates += 1
            return True
        self._known.add(digest)
        return False


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
    work: Unfinished,
) -> Corpus:
    """Read everything once: check that it can be read, count it, and decide the split.

    Args:
        files: of the source, as :func:`cpulm.data.split.readable` gives them.
        val_files: of the validation text, empty if the source is to be split.
        share: the part of ``files`` to use, in (0, 1].
        dedup: whether to leave out documents that were there before, in the validation text first. Eight
            bytes of each text's digest are kept.
        collect_characters: whether to note every character that occurs.
        stage: counts the bytes read.
        work: keeps what was seen of whole files, and may have some from an earlier process.

    Raises:
        DataError: if a file cannot be used, or there is too little text.
    """
    done = _Scan(stage, work, dedup=dedup, collect=collect_characters)
    turns = ((val_files, how.once, 1.0), (files, how, share))
    for turn in range(done.place.turn, len(turns)):
        files_here, read_as, part = turns[turn]
        place, begin = done.place, done.begin_file
        chosen = numbered(files_here, read_as, done.losses, share=part, start=place, begin_file=begin)
        done.read(chosen)
        check_enough(files_here, done.seen[turn].characters, part, done.losses)
        done.place = FilePlace(turn + 1)
        done.keep_if_due()
    val, main = done.seen
    return Corpus(
        files=tuple(files),
        val_files=tuple(val_files),
        held_out=None if val_files else main.sizes.hold_out(val_fraction, whole=how.rows_are_whole),
        reading=how,
        losses=done.losses,
        share=share,
        turns=done.turns,
        characters=frozenset(main.alphabet | val.alphabet),
        left_out=(frozenset(main.left_out), frozenset(val.left_out)),
    )


def _parts(digests: bytes) -> Iterator[bytes]:
    return (digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES))
