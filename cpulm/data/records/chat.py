"""Conversations: a row's list of messages as one document, each message between special tokens.

A message is ``<|user|>``, its text and ``<|end|>``, without anything between. Only what the assistant writes
counts in the loss, and the token that ends it: the model learns to answer, not to ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from cpulm.data.marks import LOSS_OFF, LOSS_ON, Mark
from cpulm.data.records.template import Filled
from cpulm.data.records.values import RowError, list_in, shown, value_of
from cpulm.data.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
END = "<|end|>"
"""The special token that ends a message."""
ROLE_TOKENS: Mapping[Role, str] = {
    "system": "<|system|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
}
CHAT_TOKENS = (*ROLE_TOKENS.values(), END)
MESSAGES, CONVERSATIONS = "messages", "conversations"
"""Where OpenAI's form and ShareGPT's have their list."""

_ROLES: Mapping[str, Role] = {
    **{"system": "system", "developer": "system"},
    **{"user": "user", "human": "user"},
    **{"assistant": "assistant", "gpt": "assistant"},
}
_KEYS = (("role", "content"), ("from", "value"))
"""How a message names its role and its text: OpenAI's form, ShareGPT's."""
_FORM = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True)
class ChatTemplate:
    """Makes documents of conversations, as :class:`cpulm.data.records.template.Template` does of columns.

    Attributes:
        field: where a row has its list of messages; empty: in ``messages`` or ``conversations``.
    """

    field: str = ""

    def fill(self, row: Mapping[str, Any]) -> Filled:
        """Put the messages of ``row`` between their special tokens.

        Raises:
            RowError: if there are none, one cannot be used, or none is the assistant's.
        """
        (name,) = self.required_of(row)
        value = value_of(row, name)
        try:
            messages = messages_in(value)
        except RowError as error:
            hint = error.hint or f"conversations are written as {_FORM}"
            raise RowError(f"{name}: {error}", hint) from None
        if all(message.role != "assistant" for message in messages):
            raise RowError(f"{name}: no message is the assistant's: there is nothing to learn")
        return filled(messages)

    def required_of(self, there: Iterable[str]) -> list[str]:
        """The column that is read of a row that has the columns ``there``."""
        names = list(there)
        return [self.field or next((one for one in self.columns if one in names), MESSAGES)]

    @property
    def columns(self) -> list[str]:
        """All columns that it may read."""
        return [self.field] if self.field else [MESSAGES, CONVERSATIONS]

    @property
    def special_tokens(self) -> list[str]:
        """Those of its documents."""
        return list(CHAT_TOKENS)


def filled(messages: Sequence[Message]) -> Filled:
    """The document of a conversation."""
    marks = [Mark(0, LOSS_OFF)]
    size = 0
    for role, text in messages:
        counts = role == "assistant"
        marks.append(Mark(size, ROLE_TOKENS[role]))
        if counts:
            marks.append(Mark(size, LOSS_ON))
        size += len(text)
        marks.append(Mark(size, END))
        if counts:
            marks.append(Mark(size, LOSS_OFF))
    return Filled("".join(message.text for message in messages), marks=tuple(marks))


def messages_in(value: Any) -> list[Message]:
    """The messages of a list, or of its text in JSON, in OpenAI's form or ShareGPT's.

    Raises:
        RowError: if it is none; the error names the first message that cannot be used.
    """
    messages = [_message(number, item) for number, item in enumerate(list_in(value), start=1)]
    if not messages:
        raise RowError("there are no messages")
    return messages


def _message(number: int, item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise RowError(f"message {number} is {shown(item)}, not an object with a role and a text")
    keys = next((one for one in _KEYS if item.get(one[0]) is not None), None)
    if keys is None:
        raise RowError(f"message {number} has no role", "name it by `role` or `from`")
    role, text = item[keys[0]], item.get(keys[1])
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise RowError(f"message {number} has the role {shown(role)}", f"roles are {', '.join(_ROLES)}")
    if not isinstance(text, str):
        raise RowError(f"message {number}: its {keys[1]} is {shown(text)}, not text")
    if not text or text.isspace():
        raise RowError(f"message {number}: its {keys[1]} is empty", "give each message a text")
    return Message(known, text)


def looks_like_chat(row: Mapping[str, Any]) -> bool:
    """Whether a row has a list of messages where conversations have it."""
    found = row.get(MESSAGES) or row.get(CONVERSATIONS)
    return isinstance(found, list) and bool(found) and isinstance(found[0], Mapping)


def knows_chat(tokenizer: Tokenizer) -> bool:
    """Whether a vocabulary has the special tokens of conversations: its model was trained on some."""
    ids = (tokenizer.inner.token_to_id(name) for name in CHAT_TOKENS)
    return all(number in tokenizer.special_ids for number in ids)


def end_id(tokenizer: Tokenizer) -> int:
    """The token that ends a message, of a vocabulary that :func:`knows_chat`."""
    ids: dict[str, int] = tokenizer.inner.get_vocab()
    return ids[END]


def end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end an answer: the end of a message, and that of a text."""
    return frozenset({end_id(tokenizer), tokenizer.eot_id})
