"""The tokens of a prompt."""

from __future__ import annotations

from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError


def encode_prompt(
    tokenizer: Tokenizer, prompt: str, *, starts_documents: bool, begins_records: bool = False
) -> list[int]:
    """Encode a prompt to at least one token.

    Args:
        starts_documents: whether the end-of-text token began documents in the training data. An empty prompt
            is then that token, else a line end if the tokenizer has one.
        begins_records: whether the training data is records, which all begin with that token: so does the
            prompt.

    Raises:
        DataError: if the tokenizer lacks a character or a word of the prompt.
    """
    ids = tokenizer.encode(prompt)
    if tokenizer.kind == "word":
        _require_known_words(tokenizer, prompt)
    if begins := [tokenizer.eot_id] if begins_records else tokenizer.begin_ids:
        return [*begins, *ids]
    if ids or starts_documents:
        return ids or [tokenizer.eot_id]
    try:
        return tokenizer.encode("\n") or [tokenizer.eot_id]
    except DataError:  # a vocabulary of characters without the line end
        return [tokenizer.eot_id]


def _require_known_words(tokenizer: Tokenizer, prompt: str) -> None:
    unknown = [word for word in prompt.split() if tokenizer.inner.token_to_id(word) is None]
    if unknown:
        words = ", ".join(repr(word) for word in dict.fromkeys(unknown))
        raise DataError(
            f"the word vocabulary has no {words}",
            "leave it out, or train with data.tokenizer=bpe, which can encode every text",
        )
