"""The tokens of a conversation that is to be answered, and what is left out if it is too long."""

from __future__ import annotations

import numpy as np
import pytest
from chat_models import chat_tokenizer

from cpulm.data.encoder import END, bulk_encoder, counting_losses
from cpulm.data.marked_text import encoder_of_marks, marked, without_loss_marks
from cpulm.data.records.chat import CHAT_TOKENS, Message, end_ids, filled
from cpulm.data.tokenizer import Tokenizer, char_tokenizer, train_bpe, train_word
from cpulm.errors import DataError, SettingsError
from cpulm.generation.chat import encode_chat, fit_chat, require_chat

TALK = [Message("system", "add it"), Message("user", "one é <|end|> two"), Message("assistant", "three")]
TEXTS = [message.text for message in TALK] * 3
TOKENIZERS = {
    "byte": chat_tokenizer(),
    "char": char_tokenizer("".join(TEXTS)).with_special_tokens(CHAT_TOKENS),
    "word": train_word(TEXTS, None, CHAT_TOKENS).with_special_tokens(CHAT_TOKENS),
    "bpe": train_bpe(TEXTS, 300).with_special_tokens(CHAT_TOKENS),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_prompt_is_the_beginning_of_a_document_of_the_training_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    talk = TALK if kind != "word" else [*TALK[:1], Message("user", "one é two"), TALK[2]]
    document = filled(talk)
    encode = encoder_of_marks(tokenizer, counting_losses(tokenizer, bulk_encoder(tokenizer)))
    ids = without_loss_marks(encode(marked(document.text, document.marks) + END)[0]).tolist()
    answer = ids.index(tokenizer.inner.token_to_id("<|assistant|>"))
    assert encode_chat(tokenizer, talk[:2]) == [tokenizer.eot_id, *ids[: answer + 1]]
    assert np.isin(ids, list(end_ids(tokenizer))).sum() == len(talk) + 1


def test_the_oldest_messages_are_left_out_but_not_the_system_s() -> None:
    tokenizer = chat_tokenizer()
    turns = [Message("user", "q" * 8), Message("assistant", "a" * 8)] * 4
    talk = [Message("system", "s" * 4), *turns, Message("user", "last")]
    whole, dropped = fit_chat(tokenizer, talk, 200, 20)
    assert (whole, dropped) == (encode_chat(tokenizer, talk), 0)
    for block, wanted in ((94, 0), (93, 2), (60, 4), (42, 6), (23, 8)):
        ids, dropped = fit_chat(tokenizer, talk, block, 1)
        assert (ids, dropped) == (encode_chat(tokenizer, [talk[0], *talk[1 + dropped :]]), wanted), block
        assert len(ids) <= block
    # Of a long context an answer has a quarter
    assert len(fit_chat(tokenizer, talk, 80, 1000)[0]) <= 61
    with pytest.raises(DataError, match="the message is too long: 14 tokens"):
        fit_chat(tokenizer, talk, 13, 1)
    assert fit_chat(tokenizer, talk[1:], 10, 1)[1] == 8


def test_a_model_of_text_does_not_talk() -> None:
    require_chat(chat_tokenizer(), "run")
    plain: Tokenizer = train_bpe(TEXTS, 300)
    with pytest.raises(SettingsError, match="runs/a was not trained on conversations") as error:
        require_chat(plain, "runs/a")
    assert "Chat templates of other programs are not read" in error.value.hint
    assert "--chat --init-from runs/a" in error.value.hint
