"""Multiple-choice questions: the model chooses the answer with the highest likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpulm.data.loader import IGNORED
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError
from cpulm.evaluation.scoring import TOKENS_PER_BATCH, score
from cpulm.evaluation.standard_error import Figure
from cpulm.events import Listener
from cpulm.execution.runtime import Runtime
from cpulm.generation.prompt import encode_prompt
from cpulm.model.transformer import Transformer
from cpulm.progress import Stage
from cpulm.regular_file import read_named
from cpulm.typed_json import parse_json

_MOST_BYTES = 1 << 30
_FORM = 'one JSON object per line, such as {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}'


@dataclass(frozen=True)
class Question:
    """``answer`` is the number of the right choice, from 0; ``line`` is its line in the file."""

    question: str
    choices: tuple[str, ...]
    answer: int
    line: int


@dataclass(frozen=True)
class Answered:
    """The model's choice for one question.

    Attributes:
        likelihoods: of each choice, in nats, the sum over its tokens.
        per_byte: the same over the bytes of the choice.
        chosen: the likeliest choice, ``chosen_per_byte`` the likeliest per byte.
    """

    line: int
    answer: int
    likelihoods: tuple[float, ...]
    per_byte: tuple[float, ...]
    chosen: int
    chosen_per_byte: int


@dataclass(frozen=True)
class ChoiceScore:
    """The accuracy over all questions; ``chance`` is that of guessing."""

    accuracy: Figure
    accuracy_per_byte: Figure
    chance: float
    questions: int
    answers: tuple[Answered, ...]


@dataclass(frozen=True)
class _Candidate:
    """The tokens of a question with one choice; those from ``first`` on are the choice's."""

    tokens: list[int]
    first: int


def read_questions(path: Path) -> list[Question]:
    """Read the questions of a JSONL file, or of standard input for ``-``, one JSON object per line.

    ``answer`` is the number of the right choice from 0, its letter from A, or its words.

    Raises:
        DataError: naming the file and the line that cannot be used.
    """
    try:
        content = read_named(path, _MOST_BYTES).decode("utf-8-sig")
        lines = content.split("\n")  # what else ends a line may stand within JSON text
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", f"give a JSONL file: {_FORM}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8 at offset {error.start:,}", "save it as UTF-8") from error
    questions = [_question(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise DataError(f"{path} has no questions", f"write {_FORM}")
    return questions


def _question(path: Path, number: int, line: str) -> Question:
    def wrong(what: str) -> DataError:
        return DataError(f"{path}, line {number}: {what}", f"write {_FORM}")

    try:
        record = parse_json(line)
    except ValueError as error:
        raise wrong(f"this is not JSON: {error}") from error
    if not isinstance(record, dict) or not {"question", "choices", "answer"} <= record.keys():
        raise wrong("it needs question, choices and answer")
    question, choices = record["question"], record["choices"]
    if not isinstance(question, str):
        raise wrong("the question is not a text")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        raise wrong("choices must be a list of two or more texts")
    answer = _answer(record["answer"], choices)
    if answer is None:
        raise wrong(f"the answer {record['answer']!r} is not one of the {len(choices)} choices")
    return Question(question, tuple(choices), answer, number)


def _answer(given: Any, choices: list[str]) -> int | None:
    """Return the number of the right choice, given from 0, as a letter from A, or by its words."""
    if isinstance(given, bool):
        return None
    if isinstance(given, int):
        return given if 0 <= given < len(choices) else None
    if not isinstance(given, str):
        return None
    if given in choices:
        return choices.index(given)
    number = ord(given.upper()) - ord("A") if len(given) == 1 and given.isascii() else -1
    return number if 0 <= number < len(choices) else None


def answer_questions(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    runtime: Runtime,
    *,
    starts_documents: bool,
    begins_records: bool = False,
    emit: Listener,
    should_stop: Callable[[], bool],
) -> ChoiceScore:
    """Choose the likeliest continuation of every question, in total and per byte of the choice.

    A space joins question and choice unless one of them has white space there. A question that
    does not fit into the model's context loses its beginning.

    Raises:
        DataError: if a choice does not fit into the context, or the tokenizer lacks a character.
        StoppedError: if ``should_stop`` returned True.
    """
    candidates = [
        _candidate(tokenizer, question, choice, model.settings.block_size, starts_documents, begins_records)
        for question in questions
        for choice in question.choices
    ]
    likelihoods = np.zeros(len(candidates))
    order = sorted(range(len(candidates)), key=lambda k: -len(candidates[k].tokens))
    with Stage("answering", len(candidates), "choices", emit, should_stop) as stage:
        while order:
            rows = max(1, TOKENS_PER_BATCH // len(candidates[order[0]].tokens))
            some, order = order[:rows], order[rows:]
            likelihoods[some] = _likelihoods(model, [candidates[k] for k in some], runtime)
            stage.advance(len(some))
    answers, done = [], 0
    for question in questions:
        end = done + len(question.choices)
        answers.append(_answered(question, likelihoods[done:end].tolist()))
        done = end
    return ChoiceScore(
        accuracy=_share([answer.chosen == answer.answer for answer in answers]),
        accuracy_per_byte=_share([answer.chosen_per_byte == answer.answer for answer in answers]),
        chance=sum(1 / len(question.choices) for question in questions) / len(questions),
        questions=len(questions),
        answers=tuple(answers),
    )


def _candidate(
    tokenizer: Tokenizer,
    question: Question,
    choice: str,
    block_size: int,
    starts_documents: bool,
    begins_records: bool,
) -> _Candidate:
    head = question.question
    joined = not head or head[-1].isspace() or choice[0].isspace()
    text = head + choice if joined else f"{head} {choice}"
    tokens = tokenizer.encode(text)
    # Encoded together, because a reader of the text would not cut it there: the choice's tokens are all
    # those that extend beyond the question.
    offsets = tokenizer.inner.encode(text, add_special_tokens=False).offsets
    first = next((k for k, (_, end) in enumerate(offsets) if end > len(head)), len(tokens))
    if first == 0 or begins_records:  # nothing before the choice: it begins with the token that starts a text
        start = encode_prompt(tokenizer, "", starts_documents=starts_documents)
        tokens, first = [*start, *tokens], first + len(start)
    if len(tokens) - first > block_size or first == len(tokens):
        raise DataError(
            f"line {question.line}: the choice {choice!r:.60} has {len(tokens) - first} tokens, and the "
            f"model's context is {block_size}",
            "use shorter choices, or a model with a longer context",
        )
    cut = max(0, len(tokens) - block_size - 1)
    return _Candidate(tokens[cut:], first - cut)


def _likelihoods(model: Transformer, candidates: list[_Candidate], runtime: Runtime) -> list[float]:
    longest = max(len(candidate.tokens) for candidate in candidates) - 1
    inputs = torch.zeros(len(candidates), longest, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    for row, candidate in enumerate(candidates):
        tokens, n = torch.tensor(candidate.tokens), len(candidate.tokens) - 1
        inputs[row, :n] = tokens[:-1]
        targets[row, candidate.first - 1 : n] = tokens[candidate.first :]
    losses, _ = score(model, inputs, targets, runtime)
    counts = (targets != IGNORED).sum(dim=1).tolist()
    return [-float(part.sum()) for part in np.split(losses, np.cumsum(counts)[:-1])]


def _answered(question: Question, likelihoods: list[float]) -> Answered:
    sizes = [len(choice.encode()) for choice in question.choices]
    per_byte = [value / size for value, size in zip(likelihoods, sizes, strict=True)]
    return Answered(
        line=question.line,
        answer=question.answer,
        likelihoods=tuple(likelihoods),
        per_byte=tuple(per_byte),
        chosen=int(np.argmax(likelihoods)),
        chosen_per_byte=int(np.argmax(per_byte)),
    )


def _share(right: list[bool]) -> Figure:
    """A share with its standard error over questions."""
    n, share = len(right), sum(right) / len(right)
    return Figure(share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None)
