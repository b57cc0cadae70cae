"""Answers in a conversation: its tokens, what ends an answer, and what is left out if it becomes too long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cpulm.data.marked_text import special_id
from cpulm.data.records.chat import ROLE_TOKENS, Message, filled, knows_chat
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError, SettingsError
from cpulm.generation.records import encode_marked

_PART_FOR_ANSWER = 4
"""An answer has at least this part of the context, unless fewer tokens are asked for."""
_SEARCHED_TOKENS = 1 << 20


def require_chat(tokenizer: Tokenizer, name: str) -> None:
    """Raise SettingsError if the model ``name`` was not trained on conversations."""
    if not knows_chat(tokenizer):
        raise SettingsError(
            f"{name} was not trained on conversations",
            "it continues text: `cpulm generate`. Chat templates of other programs are not read; to teach it "
            f"cpulm's: `cpulm train CHATS.jsonl --chat --init-from {name}`",
        )


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The tokens of a conversation, and the one behind which the assistant answers.

    Raises:
        DataError: if the tokenizer lacks a character or a word.
    """
    ids = [tokenizer.eot_id, *encode_marked(tokenizer, filled(messages))]
    return [*ids, special_id(tokenizer, ROLE_TOKENS["assistant"])]


def fit_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], block_size: int, max_new_tokens: int
) -> tuple[list[int], int]:
    """The tokens of the end of a conversation that leaves room for an answer.

    Returns:
        The tokens as of :func:`encode_chat`, and how many of the oldest messages are left out. A system
        message at the beginning stays, and what follows it begins with what a user says.

    Raises:
        DataError: as :func:`encode_chat`; or if the last message alone is too long.
    """
    room = block_size + 1 - min(max_new_tokens, max(1, block_size // _PART_FOR_ANSWER))
    first = 1 if messages[0].role == "system" else 0
    begins = [number for number in range(first, len(messages)) if messages[number].role == "user"]
    for begin in [first, *(number for number in begins if number > first)]:
        ids = encode_chat(tokenizer, [*messages[:first], *messages[begin:]])
        if len(ids) <= room:
            return ids, begin - first
    raise DataError(
        f"the message is too long: {len(ids)} tokens with what belongs to it, and there is room for {room}",
        f"say it shorter: the model sees {block_size} tokens",
    )


def sample_question(tokens: TokenFolder, question: str) -> tuple[str, list[int]]:
    """What a model in training is to answer: ``question``, or the first one of the validation split.

    Returns:
        The question as a text, with a line end behind it, and its tokens as of :func:`encode_chat`.
    """
    tokenizer = tokens.tokenizer
    if question:
        return f"{question}\n", encode_chat(tokenizer, [Message("user", question)])
    before = np.asarray(tokens.val[:_SEARCHED_TOKENS]).tolist()
    answer = special_id(tokenizer, ROLE_TOKENS["assistant"])
    answers = before.index(answer) if answer in before else len(before) - 1
    asks = special_id(tokenizer, ROLE_TOKENS["user"])
    asked = max((place for place in range(answers) if before[place] == asks), default=0)
    return f"{tokenizer.decode(before[asked:answers])}\n", [tokenizer.eot_id, *before[: answers + 1]]
