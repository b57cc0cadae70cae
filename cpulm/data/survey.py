"""Looks at text before a model is trained on it: lengths, tokens, duplicates, damage, secrets, samples."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cpulm.cache_dir import expand_home
from cpulm.data.copies import without_validation
from cpulm.data.encode_corpus import JOB_CHARACTERS
from cpulm.data.encoder import END, bulk_encoder, counting_losses, safe_border
from cpulm.data.holdout import name_hash
from cpulm.data.likely_secrets import SecretCounter
from cpulm.data.marked_text import encoder_of_marks, marked, without_loss_marks
from cpulm.data.near_duplicates import NearDuplicates
from cpulm.data.prepare import prepare, scan_sources
from cpulm.data.sources import find_files
from cpulm.data.split import Corpus
from cpulm.data.tokenfile import is_token_folder
from cpulm.data.tokenizer import Tokenizer
from cpulm.data.unfinished import Unfinished
from cpulm.errors import SettingsError
from cpulm.events import Listener
from cpulm.progress import Stage
from cpulm.settings import DataSettings

SHOWN_DOCUMENTS = 3
SHOWN_TOKENS = 20
_SHOWN_CHARACTERS = 400
_BARS = 12

_MISREAD = re.compile("[ÃÂ][\x80-\xbf\u0152-\u0178\u2018-\u2122]|â€")
"""UTF-8 that was read as Latin-1 or cp1252 and saved again: é as Ã©, ’ as â€™."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Lengths:
    """The lengths of all documents in tokens, the token that ends each included.

    ``bars`` are documents by length: the lower border of each bar, the upper one (exclusive), how many.
    """

    smallest: int
    median: int
    largest: int
    bars: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class SampleDocument:
    """The beginning of a document, and its tokens as text."""

    name: str
    text: str
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """What text is made of.

    Attributes:
        frequent: the most frequent tokens as text, each with its count.
        never_used: how many entries of the vocabulary are in no document, and the first of them.
        duplicates: documents whose text was there before.
        near_duplicates: documents that are almost the same as one before, among ``compared`` of them.
        not_compared: why other documents, unless they are duplicates, were not compared: how many, by reason.
        troubles: places that look damaged, by kind.
        secrets: what looks like a secret or an e-mail address, by kind: how many, and the first one masked.
    """

    documents: int
    text_bytes: int
    tokens: int
    lengths: Lengths
    frequent: tuple[tuple[str, int], ...]
    never_used: tuple[int, tuple[str, ...]]
    duplicates: int
    near_duplicates: int
    compared: int
    not_compared: dict[str, int]
    troubles: dict[str, int]
    secrets: dict[str, tuple[int, str]]
    samples: tuple[SampleDocument, ...]

    @property
    def bytes_per_token(self) -> float:
        return self.text_bytes / max(1, self.tokens)


def inspect_text(data: DataSettings, seed: int, *, emit: Listener, should_stop: Callable[[], bool]) -> Survey:
    """Look at the text that ``data`` describes, and at its tokens, which are kept in the cache.

    Raises:
        CpulmError: as :func:`cpulm.data.prepare.prepare`.
        SettingsError: if the source is a token folder, which holds no text.
    """
    if is_token_folder(expand_home(data.source[0])):
        raise SettingsError(f"{data.source[0]} holds tokens", "give the text that they were made from")
    folder = prepare(data, emit=emit, should_stop=should_stop)
    val_files = find_files(data.val_source, emit, should_stop)
    files = without_validation(find_files(data.source, weights=data.weights), val_files, lambda _: None)
    corpus = scan_sources(data, files, val_files, lambda _: None, should_stop, Unfinished(folder.path))
    with Stage("looking at the text", corpus.source_bytes, "bytes", emit, should_stop) as stage:
        return survey(replace(corpus, held_out=None), folder.tokenizer, seed, stage.advance)


def survey(corpus: Corpus, tokenizer: Tokenizer, seed: int, advance: Callable[[int], None]) -> Survey:
    """Look at the text of ``corpus``, in which no document is cut, and at its tokens.

    Args:
        seed: chooses the documents to show.
        advance: called with the bytes of source read since the last call.
    """
    seen, tokens = _Text(seed), _Tokens(tokenizer)
    for part in corpus.parts():
        seen.add(part.document, part.text, ends=part.ends)
        text = marked(part.text, part.marks)
        tokens.add(text + END if part.ends else text)
        advance(part.source_bytes)
    counts = tokens.finish()
    pieces = _Pieces(tokenizer)
    used = [number for number in np.argsort(-counts, kind="stable") if counts[number]]
    unused = np.flatnonzero(counts == 0).tolist()
    return Survey(
        documents=seen.documents,
        text_bytes=seen.text_bytes,
        tokens=int(counts.sum()),
        lengths=_lengths(np.concatenate(tokens.lengths)),
        frequent=tuple((pieces.text(number), int(counts[number])) for number in used[:SHOWN_TOKENS]),
        never_used=(len(unused), tuple(pieces.text(number) for number in unused[:SHOWN_TOKENS])),
        duplicates=seen.duplicates,
        near_duplicates=seen.near.found,
        compared=seen.near.compared,
        not_compared=seen.near.not_compared,
        troubles=dict(seen.troubles),
        secrets=seen.secrets.found,
        samples=tuple(
            SampleDocument(f"document {number + 1:,}", text, pieces.of(text))
            for _, number, text in sorted(seen.chosen, key=lambda one: one[1])
        ),
    )


@dataclass
class _Text:
    """What is counted in text, a part of a document at a time."""

    seed: int
    documents: int = 0
    text_bytes: int = 0
    duplicates: int = 0
    troubles: Counter[str] = field(default_factory=Counter)
    secrets: SecretCounter = field(default_factory=SecretCounter)
    near: NearDuplicates = field(default_factory=NearDuplicates)
    chosen: list[tuple[float, int, str]] = field(default_factory=list)
    _known: set[bytes] = field(default_factory=set)
    _hasher: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=8))
    _beginning: str = ""
    _number: int = -1

    def add(self, document: int, text: str, *, ends: bool) -> None:
        if document != self._number:
            self._number, self._beginning = document, ""
        encoded = text.encode()
        self.text_bytes += len(encoded)
        self._hasher.update(encoded)
        self._beginning += text[: max(0, NearDuplicates.CHARACTERS - len(self._beginning))]
        self._note_troubles(text)
        self.secrets.add(text)
        if ends:
            self._finish()

    def _note_troubles(self, text: str) -> None:
        if "\N{REPLACEMENT CHARACTER}" in text:
            self.troubles["U+FFFD, a character that was lost"] += text.count("\N{REPLACEMENT CHARACTER}")
        if not text.isascii() and (misread := len(_MISREAD.findall(text))):
            self.troubles["UTF-8 that was read in another encoding, such as Ã©"] += misread
        if control := len(_CONTROL.findall(text)):
            self.troubles["control characters"] += control

    def _finish(self) -> None:
        digest = self._hasher.digest()
        self._hasher = hashlib.blake2b(digest_size=8)
        if digest in self._known:
            self.duplicates += 1
        else:
            self._known.add(digest)
            self.near.add(self._beginning)
        place = name_hash(f"{self.seed}:{self.documents}")
        self.chosen.append((place, self.documents, self._beginning[:_SHOWN_CHARACTERS]))
        if len(self.chosen) > SHOWN_DOCUMENTS:
            self.chosen.remove(max(self.chosen))
        self.documents += 1
        self._beginning = ""


class _Tokens:
    """Encodes text part by part: counts each token, and the tokens of each document."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = encoder_of_marks(tokenizer, counting_losses(tokenizer, bulk_encoder(tokenizer)))
        self._eot_id = tokenizer.eot_id
        self._counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._held: list[str] = []
        self._size = 0
        self._begun = 0
        self.lengths: list[npt.NDArray[np.int64]] = []

    def add(self, text: str) -> None:
        self._held.append(text)
        self._size += len(text)
        if self._size >= JOB_CHARACTERS:
            gathered = "".join(self._held)
            border = safe_border(gathered)
            self._note(gathered[:border])
            self._held, self._size = [gathered[border:]], len(gathered) - border

    def finish(self) -> npt.NDArray[np.int64]:
        """Encode the rest; return how often each token occurs."""
        self._note("".join(self._held))
        return self._counts

    def _note(self, text: str) -> None:
        ids = without_loss_marks(self._encode(text)[0])
        self._counts += np.bincount(ids, minlength=len(self._counts))
        ends = np.flatnonzero(ids == self._eot_id) + 1
        self.lengths.append(np.diff(ends, prepend=-self._begun))
        self._begun = len(ids) - int(ends[-1]) if len(ends) else self._begun + len(ids)


class _Pieces:
    """Tokens as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, number: int) -> str:
        """What a token decodes to; its name in the vocabulary if that is nothing or not a whole character."""
        text = self._tokenizer.decode([number])
        lossy = not text or "\N{REPLACEMENT CHARACTER}" in text
        return (self._tokenizer.inner.id_to_token(number) or f"id {number}") if lossy else text

    def of(self, text: str) -> tuple[str, ...]:
        return tuple(map(self.text, self._tokenizer.encode(text)))


def _lengths(lengths: npt.NDArray[np.int64]) -> Lengths:
    if not len(lengths):
        return Lengths(0, 0, 0, ())
    low, high = int(lengths.min()), int(lengths.max())
    borders = np.geomspace(max(1, low), high + 1, _BARS + 1).round().astype(np.int64)
    borders[0], borders[-1] = low, high + 1
    borders = np.unique(borders)
    counted, _ = np.histogram(lengths, borders)
    bars = tuple((int(borders[n]), int(borders[n + 1]), int(counted[n])) for n in range(len(borders) - 1))
    return Lengths(low, int(np.median(lengths)), high, bars)
