"""Finds the token folder that a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.data.prepare import check, prepare
from cpulm.data.sources import absolute_sources
from cpulm.data.token_cache import discard_damaged, mark_used
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError
from cpulm.events import Listener
from cpulm.settings import DataSettings


def same_tokens(
    checkpoint: Checkpoint,
    show: Listener,
    should_stop: Callable[[], bool],
    data: DataSettings | None = None,
) -> TokenFolder:
    """Return the checkpoint's token folder; make it again from its text if it is gone or damaged.

    It is made with the checkpoint's own tokenizer: a later version of cpulm may train another one on the same
    text.

    Args:
        data: the settings to make it from, if the text is in another place now; None: the checkpoint's.

    Raises:
        DataError: if the tokens are gone, and their text has changed or is gone too.
        StoppedError: if ``should_stop`` ended it.
    """
    path, before = Path(checkpoint.data["path"]), absolute_sources(checkpoint.settings.data)
    data = data or before
    if (data.source, data.val_source) == (before.source, before.val_source):
        tokens = _intact(path, checkpoint.data["digest"], show, should_stop)
        if tokens is not None:
            return tokens
    elsewhere = "if the text is in another place now: `cpulm resume RUN --data TEXT`"
    try:
        tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json)
        tokens = prepare(data, emit=show, should_stop=should_stop, tokenizer=tokenizer)
    except DataError as error:
        raise DataError(
            f"the tokens that the run was trained on are needed again, and {error.message}",
            f"bring the text back; {elsewhere}",
        ) from error
    if tokens.digest != checkpoint.data["digest"]:
        raise DataError(
            f"{', '.join(data.source)} gives other tokens than the run was trained on: the text, or "
            "the names of its files, differ",
            f"bring back the files that the run began with, or start a new run; {elsewhere}",
        )
    return tokens


def _intact(path: Path, digest: str, show: Listener, should_stop: Callable[[], bool]) -> TokenFolder | None:
    """Return the token folder at ``path``; None if it is gone or damaged, or has other tokens."""
    try:
        if not path.is_dir():
            return None
        tokens = TokenFolder.open(path)
        if tokens.digest != digest:
            return None
        check(tokens, show, should_stop)
    except OSError:  # below a folder that may not be entered
        return None
    except DataError as error:
        discard_damaged(path, error, show)
        return None
    mark_used(path)
    return tokens
