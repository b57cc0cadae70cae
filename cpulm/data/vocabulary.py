"""Makes the tokenizer that the settings name, trained on the text if necessary."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

from cpulm.cache_dir import expand_home
from cpulm.data.encoder import safe_border
from cpulm.data.joined import END_BYTE, rejoined, separated
from cpulm.data.marks import pieces_of
from cpulm.data.piece_borders import piece_starts
from cpulm.data.split import Corpus, SplitBlock
from cpulm.data.splitting import NEW_PATTERN
from cpulm.data.tokenizer import KINDS, Tokenizer, byte_tokenizer, char_tokenizer, train_bpe, train_word
from cpulm.data.tokenizer_json import read_tokenizer
from cpulm.data.word_list import SUFFIX, word_list_tokenizer
from cpulm.errors import DataError, SettingsError, StoppedError
from cpulm.events import Listener
from cpulm.interrupts import ABANDONED
from cpulm.progress import Stage
from cpulm.settings import DataSettings

SAMPLE_BYTES = 32 << 20
"""A vocabulary is trained on at most this much text, spread evenly over the training split."""
DISTINCT_BYTES = 2 << 20
"""... and on about so much of distinct pieces of text, for which training needs some 100 bytes of memory each
byte. Ordinary text repeats its words and has less; DNA or random names, say, do not repeat."""

_POLL_SECONDS = 0.1


def trains_vocabulary(tokenizer: str) -> bool:
    """Whether ``data.vocab_size`` has an effect with this ``data.tokenizer``."""
    return tokenizer in ("bpe", "word")


def vocabulary_key(data: DataSettings, tokenizer: Tokenizer | None) -> str:
    """A key that changes with everything but the text that would change the vocabulary.

    Args:
        tokenizer: the one that is used again, if there is one.

    Raises:
        DataError: if a named ``tokenizer.json`` cannot be read.
    """
    if tokenizer is not None:
        return hashlib.blake2b(tokenizer.to_json().encode()).hexdigest()
    if data.tokenizer in KINDS:
        return f"bpe, {NEW_PATTERN}" if data.tokenizer == "bpe" else data.tokenizer
    try:
        return hashlib.blake2b(read_tokenizer(expand_home(data.tokenizer))).hexdigest()
    except OSError as error:
        raise DataError(
            f"cannot read the tokenizer {data.tokenizer}: {error.strerror}",
            f"give a tokenizer.json, or one of {', '.join(KINDS)}",
        ) from error


def make_tokenizer(
    data: DataSettings, corpus: Corpus, emit: Listener, should_stop: Callable[[], bool]
) -> Tokenizer:
    """Make the tokenizer of ``data.tokenizer``: read from a file, built, or trained on a sample.

    One that is built here leaves room in ``data.vocab_size`` for the special tokens of the documents.

    Raises:
        SettingsError: if the vocabulary size does not fit the kind or the text.
        DataError: if a named ``tokenizer.json`` or list of words cannot be used.
        StoppedError: if ``should_stop`` returned True.
    """
    return given_tokenizer(data) or _built(data, corpus, emit, should_stop)


def given_tokenizer(data: DataSettings) -> Tokenizer | None:
    """Read the tokenizer that ``data.tokenizer`` is the path of; None if it names a kind.

    Raises:
        DataError: if it cannot be used.
    """
    if data.tokenizer in KINDS:
        return None
    path = expand_home(data.tokenizer)
    return word_list_tokenizer(path) if path.suffix == SUFFIX else Tokenizer.from_file(path)


def _built(data: DataSettings, corpus: Corpus, emit: Listener, should_stop: Callable[[], bool]) -> Tokenizer:
    """The tokenizer without the documents' special tokens, for which entries of the vocabulary are left."""
    special = corpus.reading.special_tokens
    if data.tokenizer == "byte":
        return byte_tokenizer()
    if data.tokenizer == "char":
        return char_tokenizer(corpus.characters)
    vocab_size = None if data.vocab_size is None else data.vocab_size - len(special)
    if data.tokenizer == "bpe":
        if vocab_size is None:
            raise SettingsError("data.tokenizer=bpe needs data.vocab_size", "such as --vocab-size 4096")
        size = vocab_size
        return _in_background(lambda texts: train_bpe(texts, size), corpus, emit, should_stop)
    return _in_background(lambda texts: train_word(texts, vocab_size, special), corpus, emit, should_stop)


def _in_background(
    train: Callable[[Iterator[str]], Tokenizer],
    corpus: Corpus,
    emit: Listener,
    should_stop: Callable[[], bool],
) -> Tokenizer:
    """Run ``train`` on the sample in a thread: the library cannot be interrupted, but it can be abandoned."""
    sample = _Sample(corpus)
    outcome: list[Tokenizer | BaseException] = []

    def work() -> None:
        try:
            outcome.append(train(sample.texts()))
        except BaseException as error:  # raised again in the thread that waits
            outcome.append(error)

    thread = threading.Thread(target=work, name="cpulm-vocabulary", daemon=True)
    thread.start()
    total = min(SAMPLE_BYTES, corpus.source_bytes)
    try:
        with Stage("sampling the text", total, "bytes", emit, should_stop) as stage:
            stage.advance()
            while thread.is_alive() and not sample.ended:
                thread.join(_POLL_SECONDS)
                stage.advance(sample.taken - stage.done)
        with Stage("learning the vocabulary", None, "", emit, should_stop) as stage:
            stage.advance()
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
                stage.advance()
    except BaseException:
        sample.stop()
        thread.name = ABANDONED
        raise
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


class _Sample:
    """A bounded part of the training text, spread evenly over it.

    ``taken`` and ``ended`` are written by the thread that iterates and read by the one that waits.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.taken = 0
        self.ended = False
        self._corpus = corpus
        self._stopped = False
        self._pieces: set[int] = set()
        self._distinct = 0

    def stop(self) -> None:
        self._stopped = True

    def texts(self) -> Iterator[str]:
        """Yield the sample, cut between words."""
        total = self._corpus.source_bytes
        seen = 0
        held = ""
        for part in self._corpus.blocks():
            if self._stopped:
                raise StoppedError("while sampling text", "run the command again")
            if isinstance(part, SplitBlock):
                yield held
                held = ""
                yield from self._of_block(part, seen, total)
                seen += part.source_bytes
                continue
            seen += part.source_bytes
            if part.split != "train" or self._has_enough(seen, total):
                yield held
                held = ""
                continue
            if part.marks:  # no token spans a mark
                yield held
                held = ""
                for piece in pieces_of(part.text, part.marks):
                    self._note(piece)
                    yield piece
                continue
            text = held + part.text
            border = len(text) if part.ends else safe_border(text)
            held = text[border:]
            self._note(text[:border])
            yield text[:border]
        yield held
        self.ended = True

    def _of_block(self, block: SplitBlock, seen: int, total: int) -> Iterator[str]:
        """Whole documents as :meth:`texts` takes them one by one, but their pieces are looked at together."""
        if block.split != "train":
            return
        documents, (each, rest) = separated(block.data), divmod(block.source_bytes, len(block.documents))
        step = len(documents)
        # However many of its pieces are new, the limit of distinct pieces is not met within the block.
        if self._has_enough_distinct(seen + each + rest, total, len(block.data)):
            step = 1
        for first in range(0, len(documents), step):
            taken: list[bytes] = []
            for document in documents[first : first + step]:
                seen, rest = seen + each + rest, 0
                if not self._has_enough(seen, total):
                    taken.append(document)
                    self.taken += len(document)
            self._note_pieces(rejoined(taken))
            yield from map(bytes.decode, taken)

    def _has_enough(self, seen: int, total: int) -> bool:
        """Whether the sample has its share of the text read so far: ``seen`` bytes of files of ``total``.

        Of distinct pieces half of the limit may come from anywhere: every text begins with new words.
        """
        return self.taken * total > SAMPLE_BYTES * seen or self._has_enough_distinct(seen, total)

    def _has_enough_distinct(self, seen: int, total: int, more: int = 0) -> bool:
        """Whether that is so of distinct pieces, and of ``more`` bytes of them."""
        half = DISTINCT_BYTES // 2
        return (self._distinct + more - half) * total > half * seen

    def _note(self, text: str) -> None:
        """Count the bytes of the text, and of pieces that were not in the sample before."""
        data = text.encode()
        self.taken += len(data)
        self._note_pieces(data)

    def _note_pieces(self, data: bytes) -> None:
        starts = [*piece_starts(data).tolist(), len(data)] if data else []
        for piece in {data[begin:end] for begin, end in pairwise(starts)}:
            number = hash(piece)
            if number not in self._pieces and piece != END_BYTE:
                self._pieces.add(number)
                self._distinct += len(piece)
