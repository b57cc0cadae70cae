"""The examples: their vocabulary, rules, boards and settings; whole runs of them take minutes."""

from __future__ import annotations

import importlib
import random
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

from cpulm.data.reading import Reading
from cpulm.data.word_list import word_list_tokenizer
from cpulm.generation.rules.python_rule import Written, load_function
from cpulm.settings.resolve_settings import resolve

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def climb(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(EXAMPLES / "climb"))
    names = ("rules", "board", "judge")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in names}


def test_the_rules_of_routes_never_end_in_a_dead_end(climb: dict[str, ModuleType]) -> None:
    allowed = load_function(f"{EXAMPLES / 'climb' / 'rules.py'}:allowed")
    vocabulary = word_list_tokenizer(EXAMPLES / "climb" / "words.txt")
    assert vocabulary.vocab_size == 46
    known = set(vocabulary.inner.get_vocab())
    choose = random.Random(0)
    for number in range(200):
        words: list[str] = []
        while True:
            may = allowed(Written(tuple(words), " ".join(words), {"grade": "7A"}))
            assert may
            assert set(may) <= known
            # Up at once every second time: else a route fills whole rows before it ends.
            word = max(may) if "<|endoftext|>" not in may and number % 2 else choose.choice(sorted(may))
            if word == "<|endoftext|>":
                break
            words.append(word)
        holds, begun = climb["rules"].holds_in(words)
        assert begun is None
        assert climb["rules"].broken_rule(holds) is None
    unknown_grade = allowed(Written((), "", {}))
    assert unknown_grade is None


@pytest.mark.parametrize(
    ("holds", "rule"),
    [
        ([(5, 4), (5, 10), (5, 17)], None),
        ([(5, 4), (5, 0)], "on the board"),
        ([(5, 4), (5, 10), (5, 10), (5, 17)], "none twice"),
        ([(5, 7), (5, 12), (5, 17)], "begins below"),
        ([(5, 4), (5, 17)], "within reach"),
        ([(5, 4), (5, 10)], "ends on top"),
    ],
)
def test_a_broken_rule_is_named(
    climb: dict[str, ModuleType], holds: list[tuple[int, int]], rule: str | None
) -> None:
    assert climb["rules"].broken_rule(holds) == rule


def test_a_board_shows_every_hold(climb: dict[str, ModuleType]) -> None:
    holds = [(5, 4), (3, 8), (6, 12), (6, 17)]
    lines = climb["board"].as_text("7A", holds).splitlines()
    assert lines[0] == "7A, 4 holds"
    assert lines[1].split()[7] == "4"
    assert lines[14].split()[6] == "1"
    drawn = ET.fromstring(climb["board"].as_svg("7A", holds))
    assert len([one for one in drawn.iter() if one.get("r") == "12"]) == 4


def test_the_judge_learns_that_long_moves_are_hard(climb: dict[str, ModuleType]) -> None:
    easy = [("6B", ((5, 4), (5 + n % 3, 8), (5, 11), (5, 14), (5, 17))) for n in range(30)]
    hard = [("8A", ((n % 9, 4), (5, 11), (n % 7, 17))) for n in range(30)]
    judge = climb["judge"].learn([*easy, *hard])
    assert judge.correlation([*easy, *hard]) > 0.9


def test_the_settings_of_the_examples_fit_together() -> None:
    names = resolve(config=EXAMPLES / "names" / "names.yaml", environ={})
    assert Reading.of(names.data).masks_loss
    routes = resolve("climb", environ={})
    template = Reading.of(routes.data).parsed_template
    assert template is not None
    assert template.text({"grade": "7A", "full_path": "[[5, 4], [3, 8]]"}) == "7A x5 y4 x3 y8"
    assert routes.train.records


def test_sums_have_one_right_answer_and_what_is_held_out_is_not_learnt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "sums"))
    sums = importlib.import_module("sums")
    source = random.Random(0)
    rights: dict[str, str] = {}
    for held_out in (True, False):
        seen = set()
        for _ in range(400):
            kind, messages = sums.a_talk(source, held_out=held_out)
            seen.add(kind)
            asked = [message["content"] for message in messages if message["role"] == "user"]
            assert all(sums.is_held_out(question) == held_out for question in asked)
            if kind != "and more":
                assert rights.setdefault(asked[0], messages[-1]["content"]) == messages[-1]["content"]
        assert seen == set(sums.KINDS)
    assert sums.as_time(5) == "00:05"
    settings = resolve(config=EXAMPLES / "sums" / "sums.yaml", assignments=["data.chat=true"], environ={})
    assert Reading.of(settings.data).special_tokens == ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
