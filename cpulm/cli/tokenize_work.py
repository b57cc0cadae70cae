"""Text to a token folder, stoppable: the work behind ``cpulm tokenize``."""

from __future__ import annotations

from pathlib import Path

from cpulm.data.prepare import prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.vocabulary import trains_vocabulary
from cpulm.errors import AbortedError, SettingsError
from cpulm.events import Listener
from cpulm.interrupts import StopRequest
from cpulm.settings import DataSettings


def tokenize(data: DataSettings, out: Path, *, vocab_size_given: bool, show: Listener) -> TokenFolder:
    """Make the token folder ``out``; a stop signal ends the work and leaves nothing behind.

    Args:
        data: what to read, how to split it, and the tokenizer.
        out: absent, or an empty folder.
        vocab_size_given: the user asked for the vocabulary size, so that ignoring it would be a surprise.
        show: receives Progress and Notice events.

    Raises:
        CpulmError: what :func:`cpulm.data.prepare.prepare` raises.
        SettingsError: if a vocabulary size is given for a tokenizer that trains none.
    """
    if vocab_size_given and not trains_vocabulary(data.tokenizer):
        raise SettingsError(
            f"--vocab-size has no effect: the tokenizer {data.tokenizer} has a vocabulary of its own",
            "leave it out, or use --tokenizer bpe or word",
        )
    try:
        with StopRequest() as stop:
            return prepare(data, emit=show, should_stop=stop, out=out)
    except AbortedError as error:
        raise AbortedError("aborted; nothing was written") from error
