"""Finds the token folder that a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.data.prepare import check, prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import DataError
from cpulm.events import Listener


def same_tokens(checkpoint: Checkpoint, show: Listener, should_stop: Callable[[], bool]) -> TokenFolder:
    """The token folder of the checkpoint; made again from the same sources if it is gone.

    Raises:
        DataError: if it is gone, and the sources have changed or are gone too.
        StoppedError: if ``should_stop`` ended it.
    """
    path, digest = Path(checkpoint.data["path"]), checkpoint.data["digest"]
    if path.is_dir():
        tokens = TokenFolder.open(path)
        if tokens.digest == digest:
            check(tokens, show, should_stop)
            return tokens
    tokens = prepare(checkpoint.settings.data, emit=show, should_stop=should_stop)
    if tokens.digest != digest:
        raise DataError(
            f"the token folder {path} is gone, and {', '.join(checkpoint.settings.data.source)} has changed",
            "bring back the files that the run began with, or start a new run",
        )
    return tokens
