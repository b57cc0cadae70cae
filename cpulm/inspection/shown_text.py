"""The text that a model is inspected on: the user's, or the validation set of its run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.data.encoder import keeps_every_text, lost_bytes
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError

VALIDATION = "the validation set"
_GIVE_A_TEXT = "give it a text to look at: --data FILE"


@dataclass(frozen=True)
class ShownText:
    """A text as tokens.

    Attributes:
        name: its name in messages.
        tokens: 1-D; at least two.
        bytes_per_token: UTF-8 bytes of the text per token.
        is_given: whether the user gave it.
        text_lost: the share of the text, in bytes, that the tokenizer loses.
        has_lead: whether the first token is an end-of-text token put before the text, as before
            documents in training.
    """

    name: str
    tokens: npt.NDArray[Any]
    bytes_per_token: float
    is_given: bool
    has_lead: bool
    text_lost: float = 0.0


def training_data_of(checkpoint: Checkpoint) -> TokenFolder:
    """Open the token folder that the model was trained on.

    Raises:
        DataError: if it no longer exists or has changed.
    """
    where = checkpoint.data.get("path")
    if not where:
        raise DataError("the checkpoint does not say what it was trained on", _GIVE_A_TEXT)
    path = Path(where)
    if not path.is_dir():
        raise DataError(f"the checkpoint's training data {path} does not exist", _GIVE_A_TEXT)
    try:
        folder = TokenFolder.open(path)
    except DataError as error:
        raise DataError(
            f"cannot read the checkpoint's training data: {error.message}", _GIVE_A_TEXT
        ) from error
    if folder.digest != checkpoint.data.get("digest"):
        raise DataError(f"the data at {path} is not what the checkpoint was trained on", _GIVE_A_TEXT)
    return folder


def validation_text(folder: TokenFolder) -> ShownText:
    """Return the validation split of ``folder``."""
    if len(folder.val) < 2:
        raise DataError("the validation set has only one token", _GIVE_A_TEXT)
    return ShownText(
        VALIDATION,
        folder.val,
        folder.bytes_per_token,
        is_given=False,
        has_lead=False,
        text_lost=folder.lost_share,
    )


def given_text(text: str, name: str, tokenizer: Tokenizer, *, starts_documents: bool) -> ShownText:
    """Encode ``text``, after an end-of-text token if one began documents in training.

    Raises:
        DataError: if it is too short for a prediction, or the tokenizer lacks a character of it.
    """
    ids = tokenizer.encode(text)
    lead = [tokenizer.eot_id] if starts_documents else []
    if not ids or len(ids) + len(lead) < 2:
        count = f"{len(ids)} token{'' if len(ids) == 1 else 's'}"
        raise DataError(f"{name} is too short: it has {count}", "give a text of at least two tokens")
    tokens = np.array([*lead, *ids], dtype=np.int64)
    size = len(text.encode())
    lost = 0 if keeps_every_text(tokenizer) else lost_bytes(tokenizer, text, ids)
    return ShownText(name, tokens, size / len(ids), is_given=True, has_lead=bool(lead), text_lost=lost / size)
