"""The model's predictions at each token of a passage, and for the next one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import BLOCK, a_model

from cpulm.data.tokenizer import byte_tokenizer
from cpulm.inspection import passage as passages
from cpulm.inspection.passage import next_token, passage
from cpulm.inspection.tokens import TokenTexts

TEXTS = TokenTexts(byte_tokenizer())
TEXT = list(b"a cat, 12")


def test_every_token_with_its_surprise_rank_and_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model(257)
    monkeypatch.setattr(passages, "LOGITS_IN_CHUNK", 3 * 257)
    found = passage(model, TEXT, TEXTS, shown_from=1)
    probabilities = model(torch.tensor([TEXT[:-1]]))[0].softmax(-1).double()
    assert found.tokens == tuple(" cat, 12")
    assert found.kinds[:3] == ("whitespace", "word start", "inside a word")
    for at, token in enumerate(TEXT[1:]):
        row = probabilities[at]
        assert found.surprise[at] == pytest.approx(-float(row[token].log()), rel=1e-4)
        assert found.entropy[at] == pytest.approx(float(-(row * row.log()).sum()), rel=1e-4)
        assert found.rank[at] == 1 + int((row > row[token]).sum())
        best = row.topk(5)
        assert [each.token for each in found.alternatives[at]] == list(TEXTS.texts(best.indices.tolist()))
        np.testing.assert_allclose(
            [each.probability for each in found.alternatives[at]], best.values, rtol=1e-4
        )


def test_a_first_token_with_nothing_before_it_has_no_surprise() -> None:
    found = passage(a_model(257), TEXT, TEXTS, shown_from=0)
    assert found.tokens == tuple("a cat, 12")
    assert found.kinds[0] == "word start"
    assert np.isnan(found.surprise).tolist() == np.isnan(found.entropy).tolist() == [True] + [False] * 8
    assert (found.rank[0], found.alternatives[0]) == (0, ())


def test_the_next_token_is_the_models_distribution_after_the_prompt() -> None:
    model = a_model(257)
    found = next_token(model, TEXT, "a cat, 12", TEXTS)
    row = model(torch.tensor([TEXT]))[0, -1].softmax(-1)
    best = row.topk(20)
    assert [each.token for each in found.alternatives] == list(TEXTS.texts(best.indices.tolist()))
    np.testing.assert_allclose([each.probability for each in found.alternatives], best.values, rtol=1e-4)
    assert found.entropy == pytest.approx(float(-(row * row.log()).sum()), rel=1e-4)


def test_a_prompt_longer_than_the_context_is_seen_from_its_end() -> None:
    model, prompt = a_model(257), list(range(40))
    assert next_token(model, prompt, "", TEXTS) == next_token(model, prompt[-BLOCK:], "", TEXTS)


def test_a_small_vocabulary_has_no_more_alternatives_than_tokens() -> None:
    found = next_token(a_model(4), [1, 2], "", TEXTS)
    assert len(found.alternatives) == 4
    assert sum(each.probability for each in found.alternatives) == pytest.approx(1)
