"""Estimates how much text there is to learn from, without reading it whole."""

from __future__ import annotations

from collections.abc import Callable

from cpulm.cache_dir import expand_home
from cpulm.data.readers import is_binary, read_chunks
from cpulm.data.reading import Reading
from cpulm.data.sources import SourceFile, find_files
from cpulm.data.tokenfile import TokenFolder, is_token_folder
from cpulm.events import Event, Listener, Progress
from cpulm.settings import DataSettings

_MOST_FILES = 64
_READ_BYTES = 1 << 18
"""Of each file in the sample."""


def training_bytes(data: DataSettings, emit: Listener, should_stop: Callable[[], bool]) -> float:
    """Bytes of training text: the sizes of all files, times the part of a few of them that is text.

    Raises:
        CpulmError: as :func:`cpulm.data.prepare.prepare`, if the sources cannot be used.
    """
    folders = [source for source in data.source if is_token_folder(expand_home(source))]
    if folders:
        return float(TokenFolder.open(expand_home(folders[0])).meta["train"]["bytes"])

    def show(event: Event) -> None:
        if isinstance(event, Progress):  # what is left out is said when the text is read
            emit(event)

    files = find_files(data.source, show, should_stop, data.weights)
    how = Reading.of(data)
    stride = max(1, len(files) // _MOST_FILES)
    read = [_text_and_read(file, how) for file in files[::stride]]
    share = sum(text for text, _ in read) / max(1, sum(source for _, source in read))
    whole = share * data.share * sum(file.size * file.weight for file in files)
    return whole if data.val_source else whole * (1.0 - data.val_fraction)


def _text_and_read(file: SourceFile, how: Reading) -> tuple[int, int]:
    """Bytes of text in the beginning of a file, and the bytes of the file that were read for them."""
    if is_binary(file, how):
        return 0, min(file.size, _READ_BYTES)
    text = read = 0
    for chunk in read_chunks(file, how):
        text += len(chunk.text.encode())
        read += chunk.source_bytes
        if read >= _READ_BYTES:
            return text, read
    return text, max(read, file.size)
