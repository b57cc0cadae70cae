"""Estimates how much text there is to learn from, without reading it whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cpulm.cache_dir import expand_home
from cpulm.data.readers import format_of, is_binary, read_chunks
from cpulm.data.reading import Reading
from cpulm.data.sources import SourceFile, find_files
from cpulm.data.split import check_enough
from cpulm.data.stretches import has_stretches
from cpulm.data.tokenfile import TokenFolder, is_token_folder
from cpulm.events import Event, Listener, Progress
from cpulm.settings import DataSettings

_MOST_FILES = 64
_READ_BYTES = 1 << 18
"""Of each file in the sample."""
_READ_BYTES_PER_SECOND = {"text": 3e8, "jsonl": 3e7, "parquet": 5e7, "arrow": 5e7}
"""Of files of which little is used: read three times on an AMD EPYC (Zen 5)."""
_ROWS_PER_SECOND = 2e7
"""The same of other formats."""


class TextSize(NamedTuple):
    """How much text there is to learn from.

    Attributes:
        training_bytes: of text, as often as an epoch has it.
        read_seconds: about how long it takes to read the files that are read to their ends whatever share of
            them is used.
        is_tokenized: whether it is a token folder.
    """

    training_bytes: float
    read_seconds: float
    is_tokenized: bool


def text_size(data: DataSettings, emit: Listener, should_stop: Callable[[], bool]) -> TextSize:
    """Estimate how much text there is: the sizes of all files, times the part of a few of them that is text.

    Raises:
        CpulmError: as :func:`cpulm.data.prepare.prepare`, if the sources cannot be used, as far as is seen
            in their beginnings.
    """
    folders = [source for source in data.source if is_token_folder(expand_home(source))]
    if folders:
        return TextSize(float(TokenFolder.open(expand_home(folders[0])).meta["train"]["bytes"]), 0, True)

    def show(event: Event) -> None:
        if isinstance(event, Progress):  # what is left out is said when the text is read
            emit(event)

    how = Reading.of(data)
    val_files = find_files(data.val_source, show, should_stop)
    _text_part(val_files, how)
    files = find_files(data.source, show, should_stop, data.weights)
    whole = _text_part(files, how) * data.share * sum(file.size * file.weight for file in files)
    read_seconds = sum(
        file.size / _READ_BYTES_PER_SECOND.get(format_of(file, how), _ROWS_PER_SECOND)
        for file in (*val_files, *files)
        if not has_stretches(file, how)
    )
    return TextSize(whole if data.val_source else whole * (1.0 - data.val_fraction), read_seconds, False)


def _text_part(files: Sequence[SourceFile], how: Reading) -> float:
    """The part of the files' bytes that is text, by the beginnings of some of them."""
    stride = max(1, len(files) // _MOST_FILES)
    samples = [_sample(file, how) for file in files[::stride]]
    if stride == 1 and all(sample.is_whole for sample in samples):
        check_enough(files, sum(sample.characters for sample in samples))
    return sum(sample.text_bytes for sample in samples) / max(1, sum(sample.read_bytes for sample in samples))


class _Sample(NamedTuple):
    """How much text is in the beginning of a file, or in all of it; the bytes as often as they are used."""

    characters: int
    text_bytes: float
    read_bytes: int
    is_whole: bool


def _sample(file: SourceFile, how: Reading) -> _Sample:
    if is_binary(file, how):
        return _Sample(0, 0, min(file.size, _READ_BYTES), True)
    characters, text, read = 0, 0.0, 0
    for chunk in read_chunks(file, how):
        characters += len(chunk.text)
        text += len(chunk.text.encode()) * chunk.weight
        read += chunk.source_bytes
        if read >= _READ_BYTES:
            return _Sample(characters, text, read, False)
    return _Sample(characters, text, max(read, file.size), True)
