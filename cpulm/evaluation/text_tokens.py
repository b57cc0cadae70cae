"""Reads the text to score as chunks of tokens, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cpulm.cache_dir import expand_home
from cpulm.data.encode_corpus import JOB_CHARACTERS
from cpulm.data.encoder import END, CountingEncode, bulk_encoder, counting_losses, safe_border
from cpulm.data.losses import Losses
from cpulm.data.marked_text import Bools, LossMask, counted_bytes, encoder_of_marks, marked, unpack
from cpulm.data.readers import check_settings, read_files, unused_settings
from cpulm.data.reading import Reading
from cpulm.data.sources import SourceFile, find_files
from cpulm.data.split import readable
from cpulm.data.tokenfile import TokenFolder, is_token_folder
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError
from cpulm.events import Listener, Notice

_CHUNK_TOKENS = 1 << 18


@dataclass(frozen=True)
class Chunk:
    """Tokens, their bytes of text, and how much of the text's ``total`` was read for them.

    ``lost_bytes`` of the text decoding does not give back. ``counts`` tells which tokens count in the loss,
    None if all do; ``text_bytes`` are those of the text that counts.
    """

    ids: npt.NDArray[Any]
    text_bytes: float
    read: float
    lost_bytes: float = 0.0
    counts: Bools | None = None

    @property
    def counted_ids(self) -> npt.NDArray[Any]:
        return self.ids if self.counts is None else self.ids[self.counts]


@dataclass(frozen=True)
class Text:
    """A text that can be read repeatedly.

    Attributes:
        name: its name in messages.
        chunks: the tokens, with the end-of-text token after each document.
        total: how much there is to read, in ``unit``.
        reading: how it is read; None if it is a token folder.
    """

    name: str
    chunks: Callable[[], Iterator[Chunk]]
    total: int
    unit: Literal["bytes", "tokens"]
    reading: Reading | None = None


def open_text(
    sources: Sequence[str], tokenizer: Tokenizer, how: Reading, *, chosen: bool = True, emit: Listener
) -> Text:
    """Open the text of ``sources``: whatever ``cpulm tokenize`` reads, or one token folder.

    Args:
        chosen: ``how`` was chosen for this text, so settings without effect on it are errors.

    Raises:
        DataError: if a source cannot be used, or a token folder has another tokenizer.
    """
    folders = [source for source in sources if is_token_folder(expand_home(source))]
    if folders:
        return _from_folder(folders[0], len(sources), tokenizer)
    files, skipped = readable(find_files(sources, emit), how)
    if chosen:
        check_settings(files, how)
    else:
        how = how._replace(**unused_settings(files, how))
    if skipped:
        emit(Notice(level="info", message=f"left out {len(skipped)} binary files, such as {skipped[0]}"))

    def chunks() -> Iterator[Chunk]:
        return _encoded(files, tokenizer, how, emit)

    return Text(", ".join(sources), chunks, sum(file.size for file in files), "bytes", how)


def text_of(document: str, tokenizer: Tokenizer) -> Text:
    """Take ``document`` as a text of one document."""

    def chunks() -> Iterator[Chunk]:
        encode = encoder_of_marks(tokenizer, counting_losses(tokenizer, bulk_encoder(tokenizer)))
        ids, lost = _ids_of(encode, document + END)
        yield Chunk(ids, size, size, lost)

    size = len(document.encode())
    return Text("the text", chunks, size, "bytes")


def validation_text(tokens: TokenFolder, name: str) -> Text:
    """Open the validation split of a token folder."""

    def chunks() -> Iterator[Chunk]:
        for begin in range(0, len(tokens.val), _CHUNK_TOKENS):
            ids = np.asarray(tokens.val[begin : begin + _CHUNK_TOKENS])
            counts = None
            if tokens.val_mask is not None:
                counts = unpack(np.asarray(tokens.val_mask), np.arange(begin, begin + len(ids)))
            size = (len(ids) if counts is None else int(counts.sum())) * tokens.bytes_per_token
            yield Chunk(ids, size, len(ids), size * tokens.lost_share, counts)

    return Text(name, chunks, len(tokens.val), "tokens")


def first_tokens(chunks: Iterator[Chunk], limit: int | None) -> Iterator[Chunk]:
    """Yield the chunks up to ``limit`` tokens; the last one is cut."""
    left = limit
    for chunk in chunks:
        if left is None or len(chunk.ids) <= left:
            yield chunk
        else:
            part = left / len(chunk.ids)
            cut = chunk.text_bytes * part, chunk.read * part, chunk.lost_bytes * part
            yield Chunk(chunk.ids[:left], *cut, None if chunk.counts is None else chunk.counts[:left])
        if left is not None:
            left -= len(chunk.ids)
            if left <= 0:
                return


def bytes_of_tokens(tokenizer: Tokenizer) -> npt.NDArray[np.float64]:
    """Bytes of text per token, [vocab_size]; ones if a token alone does not determine them.

    Only the proportions are used: they distribute the bytes of a text over its parts.
    """
    if tokenizer.kind == "char":
        lengths = {number: len(piece.encode()) for piece, number in tokenizer.inner.get_vocab().items()}
    elif (tokenizer.parts.get("decoder") or {}).get("type") == "ByteLevel":
        # In byte-level vocabularies every character represents one byte.
        lengths = {number: len(piece) for piece, number in tokenizer.inner.get_vocab().items()}
    else:
        return np.ones(tokenizer.vocab_size)
    table = np.zeros(tokenizer.vocab_size)
    for number, length in lengths.items():
        table[number] = 0 if number in tokenizer.special_ids else length
    return table


def _from_folder(source: str, count: int, tokenizer: Tokenizer) -> Text:
    if count > 1:
        raise DataError(
            f"{source} is a token folder, which cannot be combined with other sources",
            "give it alone, or give texts",
        )
    tokens = TokenFolder.open(expand_home(source))
    if tokens.tokenizer.to_json() != tokenizer.to_json():
        raise DataError(
            f"the tokens in {source} were made with a different tokenizer than the checkpoint's",
            "give the text that they were made from",
        )
    tokens.verify()
    return validation_text(tokens, f"the validation split of {source}")


def _encoded(
    files: Sequence[SourceFile], tokenizer: Tokenizer, how: Reading, emit: Listener
) -> Iterator[Chunk]:
    encode = encoder_of_marks(tokenizer, counting_losses(tokenizer, bulk_encoder(tokenizer)))
    losses, mask = Losses(), LossMask(tokenizer.eot_id)
    held: list[str] = []
    length, size, read = 0, 0, 0

    def chunk(text: str) -> Chunk:
        ids, lost = _ids_of(encode, text)
        counts = None
        if how.masks_loss:
            ids, counts = mask.take(ids)
        return Chunk(ids, size, read, lost, counts)

    for piece in read_files(files, how, losses):
        text = marked(piece.text, piece.marks) if piece.marks else piece.text
        held.append(text + END if piece.ends else text)
        length += len(held[-1])
        size += counted_bytes(piece.text, piece.marks)
        read += piece.source_bytes
        if length >= JOB_CHARACTERS:
            gathered = "".join(held)
            border = safe_border(gathered)
            yield chunk(gathered[:border])
            held, length, size, read = [gathered[border:]], len(gathered) - border, 0, 0
    if length:
        yield chunk("".join(held))
    for message in losses.choices_in_words():
        emit(Notice(level="info", message=message))
    for message in losses.in_words():
        emit(Notice(level="warning", message=message))


def _ids_of(encode: CountingEncode, text: str) -> tuple[npt.NDArray[np.uint32], int]:
    try:
        return encode(text)
    except DataError as error:
        # The encoder's own hint is for users who choose a tokenizer; here it is fixed.
        raise DataError(
            error.message,
            "remove it from the text, or evaluate a model whose tokenizer can encode every text",
        ) from error
