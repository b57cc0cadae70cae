"""The most likely choice, against the probabilities of its tokens one by one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cpulm.data.tokenizer import byte_tokenizer, train_bpe
from cpulm.errors import DataError
from cpulm.evaluation.multiple_choice import ChoiceScore, Question, answer_questions, read_questions
from cpulm.execution.runtime import Runtime
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings

RUNTIME = Runtime(torch.device("cpu"), "here", 1, "fp32")
TOKENIZER = train_bpe(["the cat sat on the mat and the dog sat on the log " * 20], 277)
BLOCK = 12


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(ModelSettings(n_layer=1, n_head=2, n_embd=16, block_size=BLOCK), TOKENIZER.vocab_size)
    model.init_weights(0)
    with torch.no_grad():
        model.wte.weight.mul_(20)
    return model.eval().requires_grad_(False)


def answered(model: Transformer, *questions: Question) -> ChoiceScore:
    return answer_questions(
        model,
        TOKENIZER,
        questions,
        RUNTIME,
        starts_documents=True,
        emit=lambda _: None,
        should_stop=lambda: False,
    )


def likelihood(model: Transformer, before: list[int], choice: list[int]) -> float:
    total, ids = 0.0, list(before)
    for token in choice:
        total += float(model(torch.tensor([ids[-BLOCK:]]))[0, -1].log_softmax(-1)[token])
        ids.append(token)
    return total


def test_the_likelihood_of_a_choice_is_that_of_its_tokens(model: Transformer) -> None:
    question = Question("the cat sat", ("on the mat", "the", " dog"), 1, 1)
    (found,) = answered(model, question).answers
    before = TOKENIZER.encode("the cat sat")
    wanted = [likelihood(model, before, TOKENIZER.encode(text)) for text in (" on the mat", " the", " dog")]
    assert list(found.likelihoods) == pytest.approx(wanted, rel=1e-5)
    assert list(found.per_byte) == pytest.approx([wanted[0] / 10, wanted[1] / 3, wanted[2] / 4], rel=1e-5)
    assert found.chosen == max(range(3), key=lambda k: wanted[k])


def test_without_a_question_the_choice_begins_a_document(model: Transformer) -> None:
    (found,) = answered(model, Question("", ("the cat", "dog"), 0, 1)).answers
    wanted = likelihood(model, [TOKENIZER.eot_id], TOKENIZER.encode("the cat"))
    assert found.likelihoods[0] == pytest.approx(wanted, rel=1e-5)


def test_of_a_question_longer_than_the_context_the_end_is_read(model: Transformer) -> None:
    head = "the dog sat on the log and " * 4 + "the cat"
    (found,) = answered(model, Question(head, ("sat", "log"), 0, 1)).answers
    tokens = TOKENIZER.encode(head + " sat")
    cut = tokens[-BLOCK - 1 :]
    size = len(TOKENIZER.encode(" sat"))
    assert found.likelihoods[0] == pytest.approx(likelihood(model, cut[:-size], cut[-size:]), rel=1e-5)


def test_a_choice_longer_than_the_context_is_refused(model: Transformer) -> None:
    with pytest.raises(DataError, match="line 7"):
        answered(model, Question("the", ("cat", "xyz" * 20), 0, 7))


def test_accuracy_counts_the_right_ones_with_its_error(model: Transformer) -> None:
    choices = ("on", "the", "log", "qqqq")
    (one,) = answered(model, Question("the cat sat", choices, 0, 1)).answers
    right, wrong = one.chosen, (one.chosen + 1) % 4
    questions = [Question("the cat sat", choices, right if k < 3 else wrong, k) for k in range(4)]
    found = answered(model, *questions)
    assert found.accuracy.value == 0.75
    assert found.accuracy.standard_error == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
    assert found.chance == 0.25
    assert found.questions == 4


def write(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    return path


def test_an_answer_is_a_number_a_letter_or_its_words(tmp_path: Path) -> None:
    asked = {"question": "2 + 2 =", "choices": ["3", "4", "five"]}
    answers = [1, "B", "b", "4", "five"]
    found = read_questions(write(tmp_path / "q.jsonl", *({**asked, "answer": answer} for answer in answers)))
    assert [question.answer for question in found] == [1, 1, 1, 1, 2]
    assert [question.line for question in found] == [1, 2, 3, 4, 5]


def test_questions_come_from_standard_input_and_may_hold_any_character(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {"question": "a\u2028b\x85", "choices": ["a", "b"], "answer": 0}
    content = json.dumps(asked, ensure_ascii=False).encode() + b"\r\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    (question,) = read_questions(Path("-"))
    assert question.question == asked["question"]


@pytest.mark.parametrize(
    "record",
    [
        ["no object"],
        {"question": "?", "choices": ["a", "b"]},
        {"question": "?", "choices": ["a"], "answer": 0},
        {"question": "?", "choices": ["a", ""], "answer": 0},
        {"question": "?", "choices": "ab", "answer": 0},
        {"question": 3, "choices": ["a", "b"], "answer": 0},
        {"question": "?", "choices": ["a", "b"], "answer": 2},
        {"question": "?", "choices": ["a", "b"], "answer": -1},
        {"question": "?", "choices": ["a", "b"], "answer": "C"},
        {"question": "?", "choices": ["a", "b"], "answer": True},
    ],
)
def test_a_line_that_is_not_a_question_is_named(tmp_path: Path, record: Any) -> None:
    good = {"question": "?", "choices": ["a", "b"], "answer": 0}
    with pytest.raises(DataError, match="line 2"):
        read_questions(write(tmp_path / "q.jsonl", good, record))


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no questions"):
        read_questions(write(tmp_path / "q.jsonl"))
    with pytest.raises(DataError, match="cannot read"):
        read_questions(tmp_path / "absent.jsonl")


def test_bytes_spell_every_choice() -> None:
    """Sanity of the offsets for characters of several bytes, each of which is a token."""
    tokenizer = byte_tokenizer()
    model = Transformer(ModelSettings(n_layer=1, n_head=2, n_embd=16, block_size=32), tokenizer.vocab_size)
    model.init_weights(0)
    found = answer_questions(
        model.eval().requires_grad_(False),
        tokenizer,
        [Question("ä ö", ("ü", "u"), 0, 1)],
        RUNTIME,
        starts_documents=True,
        emit=lambda _: None,
        should_stop=lambda: False,
    )
    ids = tokenizer.encode("ä ö ü")
    log_probs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    wanted = sum(float(log_probs[k - 1, ids[k]]) for k in range(len(ids) - 3, len(ids)))
    assert found.answers[0].likelihoods[0] == pytest.approx(wanted, rel=1e-5)
