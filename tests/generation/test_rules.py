"""Rules: every text obeys them, with every kind of tokenizer, and what a user does wrong is one error."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from cpulm.data.records.template import parse_template
from cpulm.data.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_bpe, train_word
from cpulm.errors import DataError, SettingsError
from cpulm.generation.generate import NOTHING_ALLOWED, Completion, Generation, stream_text
from cpulm.generation.records import RecordPrompt, record_prompt
from cpulm.generation.rules.python_rule import PythonRule
from cpulm.generation.rules.requested import RulesRequest, build_rules
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings

TEXT = 'x1 x2 x3 y1 y2 y3 7A 6B the cat sat été eût: {}[]"a, 0123456789'
TOKENIZERS = {
    "byte": byte_tokenizer(),
    "char": char_tokenizer(TEXT),
    "bpe": train_bpe([TEXT + " x1 y2 x2 y1"] * 20, 300),
    "word": train_word([TEXT], None),
}
KINDS = pytest.mark.parametrize("kind", TOKENIZERS)
TEMPLATE = parse_template("{grade} {holds|each:'x{0} y{1}'|list}")


def texts(
    tokenizer: Tokenizer,
    asked: RulesRequest,
    fields: dict[str, str] | None = None,
    count: int = 4,
    most: int = 60,
) -> list[Completion]:
    """What a model that knows nothing writes under the rules."""
    record = None if fields is None else record_prompt(tokenizer, TEMPLATE, fields, {})
    generation, completions = begun(tokenizer, asked, record, count, most)
    for _ in stream_text(generation, completions):
        pass
    return completions


def begun(
    tokenizer: Tokenizer, asked: RulesRequest, record: RecordPrompt | None, count: int, most: int
) -> tuple[Generation, list[Completion]]:
    model = Transformer(ModelSettings(n_layer=1, n_head=2, n_embd=16, block_size=80), tokenizer.vocab_size)
    model.init_weights(0)
    model.eval()
    ids: Sequence[int] = [tokenizer.eot_id] if record is None else record.ids
    generation = Generation(
        model,
        ids,
        max_new_tokens=most,
        seed=3,
        num_samples=count,
        end_ids={tokenizer.eot_id},
        rules=build_rules(tokenizer, asked, record, count),
    )
    return generation, [Completion(tokenizer, ids) for _ in range(count)]


@KINDS
def test_every_text_matches_an_expression(kind: str) -> None:
    found = texts(TOKENIZERS[kind], RulesRequest(regex=r"(x[123] y[123] ){1,3}7A"))
    assert all(re.fullmatch(r"(x[123] y[123] ){1,3}7A", one.text) for one in found)
    assert {one.stop_reason for one in found} == {"end_of_text"}
    assert len({one.text for one in found}) > 1


@KINDS
def test_after_a_field_an_expression_begins_with_the_next_one(kind: str) -> None:
    for one in texts(TOKENIZERS[kind], RulesRequest(regex=r"x1 y[12]"), {"grade": "7A"}):
        assert re.fullmatch(r" x1 y[12]", one.text)


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_characters_of_several_bytes(kind: str) -> None:
    found = texts(TOKENIZERS[kind], RulesRequest(regex=r"(é|û){2}t"))
    assert all(re.fullmatch("[éû]{2}t", one.text) for one in found)


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_grammars_and_schemas(kind: str, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "pairs.lark"
    schema.write_text('{"type": "array", "items": {"enum": [1, 23]}, "maxItems": 3, "minItems": 1}')
    grammar.write_text('start: pair (", " pair)*\npair: "[" pair? "]"\n')
    for one in texts(TOKENIZERS[kind], RulesRequest(json_schema=schema), most=200):
        if one.stop_reason == "end_of_text":
            assert set(json.loads(one.text)) <= {1, 23}
    for one in texts(TOKENIZERS[kind], RulesRequest(grammar=grammar)):
        assert re.fullmatch(r"[\[\], ]*", one.text)
        assert one.text.count("[") >= one.text.count("]")


@KINDS
def test_values_of_a_field_that_is_written(kind: str) -> None:
    asked = RulesRequest(values={"grade": ["7A", "6B"]}, regex=None)
    assert {one.text.split()[0] for one in texts(TOKENIZERS[kind], asked, {}, count=8)} == {"7A", "6B"}
    for one in texts(TOKENIZERS[kind], RulesRequest(values={"holds": ["x1 y1", "x2 y2"]}), {"grade": "7A"}):
        assert one.text in (" x1 y1", " x2 y2")


@KINDS
@pytest.mark.parametrize("limits", [(0, 4), (3, 3), (2, None)])
def test_no_item_comes_twice_and_there_are_as_many_as_asked(
    kind: str, limits: tuple[int, int | None]
) -> None:
    shape = r"(x[12] y[123]( x[12] y[123])*)?"
    asked = RulesRequest(regex=shape, unique=["holds"], counts={"holds": limits})
    for one in texts(TOKENIZERS[kind], asked, {"grade": "7A"}, count=8):
        words = one.text.split()
        items = list(zip(words[::2], words[1::2], strict=False))
        if one.stop_reason == "end_of_text":
            assert len(set(items)) == len(items)
            assert limits[0] <= len(items) <= (limits[1] or 6)
        else:  # an item was begun whose possible ends were all there
            assert one.stop_reason == NOTHING_ALLOWED


@KINDS
def test_a_function_says_what_may_follow(kind: str, tmp_path: Path) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text(
        "def allowed(written):\n"
        "    count = written.text.count('x')\n"
        "    assert written.fields == {'grade': '7A'}\n"
        "    if written.text.endswith('y1'):\n"
        "        return [written.end] if count > 1 else ['x2', ' x2']\n"
        "    return ['y1', ' y1', '1 y1', '2 y1', ' x1'] if 'x' in written.text else ['x1', ' x1']\n"
    )
    asked = RulesRequest(functions=[f"{rules}:allowed"])
    for one in texts(TOKENIZERS[kind], asked, {"grade": "7A"}, most=30):
        assert re.fullmatch(r"[xy12 ]*", one.text)
        if kind == "word":
            assert one.text == " x1 y1 x2 y1"


def test_a_text_that_cannot_go_on_ends_and_the_reason_is_kept() -> None:
    tokenizer = TOKENIZERS["char"]
    generation, completions = begun(tokenizer, RulesRequest(regex="x(1Q|2)"), None, 8, 9)
    for _ in stream_text(generation, completions):
        pass
    ends = {(one.text, one.stop_reason) for one in completions}
    assert ends == {("x1", NOTHING_ALLOWED), ("x2", "end_of_text")}
    assert generation.rules is not None
    dead = generation.rules.dead_ends
    assert set(dead.values()) == {"--regex x(1Q|2) allows no token"}
    assert {completions[row].text for row in dead} == {"x1"}


def test_rules_together_name_the_one_that_left_nothing() -> None:
    tokenizer = TOKENIZERS["word"]
    rules = build_rules(tokenizer, RulesRequest(regex="x1"), None, 1)
    assert rules is not None
    asked = RulesRequest(regex="x1", values={"grade": ["7A"]})
    both = build_rules(tokenizer, asked, record_prompt(tokenizer, TEMPLATE, {}, {}), 1)
    assert both is not None
    logits = torch.zeros(1, tokenizer.vocab_size)
    assert torch.equal(both.apply(logits, [True]), logits)
    assert both.dead_ends == {0: "--values grade=7A allows no token that --regex x1 allows"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (RulesRequest(regex="(x"), r"--regex .* cannot be used: unclosed group"),
        (RulesRequest(grammar=Path("absent.lark")), "cannot read the rule absent.lark: No such file"),
        (RulesRequest(values={"colour": ["red"]}), "--values colour: this field is not written"),
        (RulesRequest(unique=["grade"]), "--unique grade: a record does not end with this field"),
        (RulesRequest(counts={"holds": (1, 2)}), "--count holds: a field before it is not given"),
        (RulesRequest(functions=["rules.py"]), "names no function"),
        (RulesRequest(functions=["absent.py:allowed"]), "cannot read the rules in absent.py"),
    ],
)
def test_a_rule_that_cannot_be_used_is_one_error(asked: RulesRequest, message: str) -> None:
    tokenizer = TOKENIZERS["char"]
    with pytest.raises(SettingsError, match=message):
        build_rules(tokenizer, asked, record_prompt(tokenizer, TEMPLATE, {}, {}), 2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def allowed(written):\n    return 1 / 0",
            r"rules.py, line 2, raised ZeroDivisionError: .* after 'ab'",
        ),
        ("def allowed(written):\n    return 'ab'", "returned 'ab', not a set of texts"),
        ("def allowed(written):\n    return [1]", "not a set of texts"),
        ("def allowed(written):\n    return 7", "returned 7, not a set of texts"),
        ("def allow(written): pass", "has no function allowed"),
        ("def allowed(:", "line 1, raised SyntaxError"),
        ("import absent_module", "line 1, raised ModuleNotFoundError"),
    ],
)
def test_a_function_that_is_wrong_is_one_error_with_its_line(
    tmp_path: Path, source: str, message: str
) -> None:
    path = tmp_path / "rules.py"
    path.write_text(source)

    def ask() -> None:
        rule = PythonRule(TOKENIZERS["byte"], f"{path}:allowed", {}, 1)
        for letter in b"ab":
            rule.push(0, letter)
        rule.restrict(np.zeros((1, 257), dtype=np.float32), [0])

    with pytest.raises(SettingsError, match=message):
        ask()


def test_prompts_of_records_fill_the_template_up_to_the_missing_fields() -> None:
    word, byte = TOKENIZERS["word"], TOKENIZERS["byte"]
    template = parse_template("{a}: {b|upper} {c}!")
    prompt = record_prompt(byte, template, {"a": "1", "b": "x"}, {})
    assert (prompt.text, bytes(prompt.ids[1:])) == ("1: X", b"1: X")
    assert prompt.ids[0] == byte.eot_id
    assert prompt.values(byte, [*b" cat!", byte.eot_id]) == {"a": "1", "b": "X", "c": "cat"}
    assert prompt.values(byte, list(b" cat")) is None
    empty = record_prompt(byte, template, {}, {})
    assert empty.values(byte, list(b"1: X cat!")) == {"a": "1", "b": "X", "c": "cat"}
    # A word includes the signs beside it.
    joined = record_prompt(train_word(["7A: x1 y2"], None), parse_template("{a}: {b}"), {"a": "7A"}, {})
    assert joined.text == "7A:"
    holds = record_prompt(word, TEMPLATE, {"grade": "7A"}, {})
    values = holds.values(word, word.encode("x1 y2 x3 y1"))
    assert values == {"grade": "7A", "holds": "x1 y2 x3 y1"}
    assert holds.row(values) == {"grade": "7A", "holds": "[[1, 2], [3, 1]]"}


def test_special_tokens_part_the_fields_of_a_record() -> None:
    tokenizer = byte_tokenizer().with_special_tokens(["<|b|>"])
    template = parse_template("{a}<|b|>{b}<|b|>{c}", "a")
    prompt = record_prompt(tokenizer, template, {"a": "1"}, {})
    assert prompt.ids == (256, ord("1"), 257)
    assert prompt.values(tokenizer, [*b"2", 257, *b"3", 256]) == {"a": "1", "b": "2", "c": "3"}
    rules = build_rules(tokenizer, RulesRequest(values={"b": ["x", "yz"]}), prompt, 1)
    assert rules is not None
    written: list[int] = []
    for wanted in [{*b"xy"}, {257}]:
        allowed = rules.apply(torch.zeros(1, tokenizer.vocab_size), [True])[0] == 0
        assert set(allowed.nonzero().flatten().tolist()) == wanted
        rules.push(0, min(wanted))
        written.append(min(wanted))


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"grad": "7A"}, "the records have no such field", "did you mean 'grade'"),
        ({"holds": "x1"}, "comes after grade, which is not given", "give grade too"),
        ({"grade": "7AA"}, "no record of the training data has this value", "near ones are 7A"),
        ({"grade": "Q"}, "no record of the training data has this value", "it has 7A, 6B"),
    ],
)
def test_a_condition_that_is_not_known_is_one_error(fields: dict[str, str], message: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        record_prompt(TOKENIZERS["byte"], TEMPLATE, fields, {"grade": {"7A": 3, "6B": 1}})
    assert hint in caught.value.hint


def test_logits_that_are_not_finite_are_the_models_fault() -> None:
    """Of a model that forbids all that the rules allow; nobody's rule is to blame."""
    generation, _ = begun(TOKENIZERS["char"], RulesRequest(regex="cat"), None, 2, 8)
    with pytest.raises(DataError, match="not finite"):
        generation.choose(torch.full((2, generation.read(1).size(1)), -torch.inf))
    assert generation.rules is not None
    assert generation.rules.dead_ends == {}
