"""Conversations as documents: their forms, their tokens, what of them counts in the loss, and bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpulm.data.marked_text import unpack
from cpulm.data.prepare import prepare
from cpulm.data.records.chat import CHAT_TOKENS, Message, messages_in
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import byte_tokenizer
from cpulm.errors import CpulmError, DataError, SettingsError
from cpulm.events import Event, Notice
from cpulm.settings import DataSettings
from cpulm.settings.resolve_settings import resolve

TALK = [
    ("system", "Be <|end|> short."),
    ("user", "Hi, é?"),
    ("assistant", "Yo"),
    ("user", "Bye"),
    ("gpt", "So"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))


def openai(talk: list[tuple[str, Any]]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in talk]}


def sharegpt(talk: list[tuple[str, Any]]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in talk], "id": 7}


def made(folder: Path, rows: list[Any], name: str = "chats.jsonl", **settings: Any) -> TokenFolder:
    path = folder / name
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_text(json.dumps(rows) if name.endswith(".json") else lines)
    values = {"tokenizer": "byte", "vocab_size": None, "chat": True, "val_fraction": 0.3, **settings}
    data = DataSettings.model_validate({"source": [str(path)], **values})
    return prepare(data, emit=settings.get("emit", lambda _: None), should_stop=lambda: False)


def shown(folder: TokenFolder) -> list[str]:
    """Each document of the training split with its special tokens, what counts in the loss in brackets."""
    assert folder.train_mask is not None
    counts = unpack(np.asarray(folder.train_mask), np.arange(len(folder.train)))
    tokenizer, texts, before = folder.tokenizer, [b""], False
    for token, counted in zip(folder.train.tolist(), counts.tolist(), strict=True):
        texts[-1] += (b"[" if counted else b"]") if counted != before else b""
        before = counted
        name = str(tokenizer.inner.id_to_token(token)).encode()
        texts[-1] += name if token in tokenizer.special_ids else bytes([token])
        if token == tokenizer.eot_id:
            texts.append(b"")
    return [text.decode() for text in texts[:-1]]


@pytest.mark.parametrize(
    ("rows", "name", "settings"),
    [
        ([openai(TALK)] * 6, "chats.jsonl", {}),
        ([sharegpt(TALK)] * 6, "chats.json", {}),
        ([openai(TALK), sharegpt(TALK)] * 3, "chats.jsonl", {}),
        ([{"a": {"talk": json.dumps(sharegpt(TALK)["conversations"])}}] * 6, "t.jsonl", {"field": "a.talk"}),
    ],
)
def test_answers_count_and_text_is_never_a_special_token(
    tmp_path: Path, rows: list[Any], name: str, settings: dict[str, Any]
) -> None:
    folder = made(tmp_path, rows, name, **settings)
    talk = (
        "<|system|>Be <|end|> short.<|end|><|user|>Hi, é?<|end|><|assistant|>[Yo<|end|>]"
        "<|user|>Bye<|end|><|assistant|>[So<|end|>]<|endoftext|>"
    )
    assert shown(folder) == [talk] * folder.train_documents
    assert folder.train_documents + folder.meta["val"]["documents"] == 6
    assert folder.bytes_per_token == 4 / 6  # of what counts: two letters and the end of each answer


def test_special_tokens_come_last_in_the_vocabulary(tmp_path: Path) -> None:
    for kind, size in (("byte", None), ("char", None), ("word", 20), ("bpe", 300)):
        folder = made(tmp_path, [openai(TALK)] * 6, tokenizer=kind, vocab_size=size)
        ids = [folder.tokenizer.inner.token_to_id(name) for name in CHAT_TOKENS]
        assert ids == list(range(folder.vocab_size - 4, folder.vocab_size))
        assert kind == "byte" or folder.vocab_size <= (size or 40)


def test_words_of_two_messages_are_not_joined_in_the_vocabulary(tmp_path: Path) -> None:
    talk = [("user", "what is"), ("assistant", "so it is")]
    words = made(tmp_path, [openai(talk)] * 8, tokenizer="word", vocab_size=30).tokenizer
    assert {*words.parts["model"]["vocab"]} == {"<unk>", "what", "is", "so", "it"}


def test_a_tokenizer_that_exists_gets_the_tokens_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(byte_tokenizer().with_special_tokens([CHAT_TOKENS[3], "<|other|>"]).to_json())
    tokenizer = made(tmp_path, [openai(TALK)] * 6, tokenizer=str(file)).tokenizer
    names = [tokenizer.inner.id_to_token(number) for number in range(256, tokenizer.vocab_size)]
    assert names == ["<|endoftext|>", CHAT_TOKENS[3], "<|other|>", *CHAT_TOKENS[:3]]


USER = {"role": "user", "content": "What?"}
BAD = [
    ([], "there are no messages"),
    ("hello", "'hello' is not a list"),
    ([USER, "x"], "message 2 is 'x', not an object with a role and a text"),
    ([{"content": "x"}], "message 1 has no role"),
    ([{"role": None, "content": "x"}], "message 1 has no role"),
    ([USER, {"role": "tool", "content": "x"}], "message 2 has the role 'tool'"),
    ([{"role": ["user"], "content": "x"}], r"message 1 has the role \['user'\]"),
    ([{"role": "user"}], "message 1: its content is None, not text"),
    ([{"from": "human", "value": 3}], "message 1: its value is 3, not text"),
    ([{"role": "user", "content": [{"text": "x"}]}], r"its content is \[\{'text': 'x'\}\], not text"),
    ([USER, {"role": "assistant", "content": " \n"}], "message 2: its content is empty"),
    ([USER], "no message is the assistant's: there is nothing to learn"),
]


@pytest.mark.parametrize(("messages", "why"), BAD)
def test_a_bad_conversation_is_named(tmp_path: Path, messages: Any, why: str) -> None:
    rows = [openai(TALK)] * 3 + [{"messages": messages}]
    with pytest.raises(DataError, match=f"chats.jsonl, line 4: messages: .*{why}") as error:
        made(tmp_path, rows)
    assert "--skip-bad" in error.value.hint


def test_bad_conversations_can_be_left_out(tmp_path: Path) -> None:
    rows = [openai(TALK)] * 3 + [{"messages": messages} for messages, _ in BAD] + [{"other": 1}]
    folder = made(tmp_path, rows, skip_bad=True)
    assert folder.lost_in_reading.skipped == len(BAD) + 1
    assert folder.train_documents + folder.meta["val"]["documents"] == 3


@pytest.mark.parametrize(
    ("settings", "row", "message", "hint"),
    [
        ({"chat": False}, openai(TALK), "has no field 'text'", "it looks like a conversation.*--chat"),
        ({"chat": False}, {"conversations": []}, "has no field 'text'", "--field NAME"),
        ({}, {"dialog": []}, "has no field 'messages'", "--field NAME"),
        ({"template": "{id}"}, openai(TALK), "data.chat and data.template both say", "leave one out"),
        ({"loss_after": "id"}, openai(TALK), "data.chat and data.loss_after both say", "leave one out"),
        ({"format": "text"}, openai(TALK), "data.chat has no effect", "it is for jsonl"),
    ],
)
def test_other_faults_say_what_to_do(
    tmp_path: Path, settings: dict[str, Any], row: Any, message: str, hint: str
) -> None:
    import re

    with pytest.raises(CpulmError, match=re.escape(message)) as error:
        made(tmp_path, [row] * 3, **settings)
    assert re.search(hint, error.value.hint)


def test_parquet_has_conversations_too(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "chats.parquet"
    parquet.write_table(pyarrow.table({"id": [*range(6)], "messages": [openai(TALK)["messages"]] * 6}), path)
    data = DataSettings(source=[str(path)], tokenizer="byte", vocab_size=None, chat=True, val_fraction=0.3)
    folder = prepare(data, emit=lambda _: None, should_stop=lambda: False)
    assert shown(folder)[0].endswith("<|user|>Bye<|end|><|assistant|>[So<|end|>]<|endoftext|>")


def test_roles_have_one_name() -> None:
    talk = [("developer", "a"), ("human", "b"), ("gpt", "c"), ("user", "d")]
    wanted = [Message("system", "a"), Message("user", "b"), Message("assistant", "c"), Message("user", "d")]
    assert messages_in(openai(talk)["messages"]) == messages_in(sharegpt(talk)["conversations"]) == wanted


def test_conversations_are_records() -> None:
    assert resolve(assignments=["data.chat=true"]).train.records
    assert not resolve().train.records
    with pytest.raises(SettingsError, match="makes records of conversations"):
        resolve(assignments=["data.chat=true", "train.records=false"])


def test_the_vocabulary_of_a_given_tokenizer_is_not_reported_as_too_small(tmp_path: Path) -> None:
    said: list[Event] = []
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{json.dumps(openai(TALK))}\n" * 6)
    data = DataSettings(source=[str(path)], tokenizer="bpe", vocab_size=300, chat=True, val_fraction=0.3)
    prepare(data, emit=said.append, should_stop=lambda: False, tokenizer=byte_tokenizer())
    assert not any("a vocabulary of" in one.message for one in said if isinstance(one, Notice))
