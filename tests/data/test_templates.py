"""Templates and conditions: what they make of a row, and what they say of mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from cpulm.data.records.conditions import parse_condition
from cpulm.data.records.template import FILTERS, parse_template
from cpulm.data.records.values import RowError
from cpulm.errors import SettingsError

ROW: dict[str, Any] = {
    "grade": "7a",
    "holds": "[[5, 4], [3, 8]]",
    "tuples": "[(5, 4), ('a', None)]",
    "names": ["ann", "bob"],
    "full name": "Ann Bo",
    "user": {"name": "ann", "tags": ["x", "y"], "age": 7},
    "a.b": "dotted",
    "surname": "Nan",
    "x": "3.14159",
    "n": 238119,
    "on": True,
    "none": None,
    "empty": "",
    "people": [{"name": "ann"}, {"name": "bob"}],
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{grade} {n}", "7a 238119"),
        ("{grade|upper}{{}} {full name}", "7A{} Ann Bo"),
        ("{ user.name }:{user.tags.1}:{a.b}", "ann:y:dotted"),
        ("{holds|list}", "5,4 3,8"),
        ("{holds|list:'; ':'-'}", "5-4; 3-8"),
        (r"{names|list:'\n'}\n\t\\", "ann\nbob\n\t\\"),
        ("{names|list: & }", "ann&bob"),
        ("{holds|each:'x{0} y{1}'|list}", "x5 y4 x3 y8"),
        ("{names|each:'<{0|upper}>'|list:''}", "<ANN><BOB>"),
        ("{people|each:'{name}'|list}", "ann bob"),
        ("{x|round:2} {x|round:0}", "3.14 3"),
        ("{on} {names} {user.age}", 'true ["ann", "bob"] 7'),
        ("{none|default:-} {empty|default:'a b'} {gone|default:''}.", "- a b ."),
        ("{grade|replace:'7':'8'|upper|strip}", "8A"),
        ("{names|json}", '["ann", "bob"]'),
    ],
)
def test_a_template_puts_values_into_text(template: str, text: str) -> None:
    assert parse_template(template).text(ROW) == text


@pytest.mark.parametrize(
    ("template", "message", "hint"),
    [
        ("{grade|uper}", "there is no filter 'uper'", "did you mean 'upper'"),
        ("{grade", "cannot be read from '{grade' on", "{name}"),
        ("a } b", "cannot be read from '} b' on", "}}"),
        ("{}", "cannot be read", "{name}"),
        ("no columns", "names no column", "{name}"),
        ("{x|round}", "round takes 1 arguments, not 0", ""),
        ("{x|round:two}", "'two' is not a number of digits", ""),
        ("{x|round:99}", "'99' is not a number of digits", ""),
        ("{x|list:a:b:c}", "list takes 0 to 2 arguments, not 3", ""),
        ("{x|each:'{0|no}'}", "there is no filter 'no'", "Filters: "),
        ("{x.__class__|attr:'y'}", "there is no filter 'attr'", "Filters: "),
    ],
)
def test_a_template_that_is_not_understood_is_one_error(template: str, message: str, hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_template(template)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{grad}", "has no field 'grad': it has 'grade', 'holds'"),
        ("{user.nme}", "has no field 'user.nme'"),
        ("{user.__class__}", "has no field 'user.__class__'"),
        ("{none}", "column 'none': the value is null"),
        ("{grade|round:1}", "column 'grade': '7a' is not a number"),
        ("{grade|list}", "column 'grade': '7a' is not a list"),
        ("{n|list}", "column 'n': 238119 is not a list"),
    ],
)
def test_a_row_that_does_not_fit_the_template_is_named(template: str, message: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_template(template).text(ROW)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os').getcwd()", "is not a list"),
        ("[1, 2", "is not a list"),
        ("[" * 40 + "]" * 40, "is nested 40 deep"),
        ("[" + "1," * 40_000 + "1]", "characters is too long"),
        ("9" * 5000, "is not a list"),
        ("[" + "9" * 5000 + "]", "is not a list"),
    ],
)
def test_a_list_in_text_is_parsed_within_limits_and_never_run(text: str, message: str) -> None:
    with pytest.raises(RowError, match=message):
        parse_template("{x|list}").text({"x": text})


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("[1, 1.0, true, '1']", "1 1.0 true 1"),
        ("[true, 1.0, 1, NaN, -0, 1e400]", "true 1.0 1 NaN 0 Infinity"),
        ("[" + "[1]," * 40 + "2]", "1 " * 40 + "2"),
        (f"[{2**70}, [{-(2**70)}]]", f"{2**70} {-(2**70)}"),
    ],
)
def test_items_are_written_by_their_own_type(text: str, written: str) -> None:
    """Also after an equal one, and in a template of their own."""
    row = {"x": text.replace("'1'", '"1"')}
    assert parse_template("{x|list}").text(row) == written
    assert parse_template("{x|each:'{0}'|list}").text(row) == written


def test_a_list_in_text_says_nothing_of_its_backslashes(recwarn: pytest.WarningsRecorder) -> None:
    assert parse_template("{x|list}").text({"x": r"['a\d', 'b']"}) == r"a\d b"
    assert not recwarn.list


def test_columns_without_a_default_are_required() -> None:
    assert parse_template("{b} {a|upper} {b} {c|default:'x'}").required_of([]) == ["b", "a"]


def test_every_filter_is_shown_at_work() -> None:
    shown = test_a_template_puts_values_into_text.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert {name for name in FILTERS if any(f"|{name}" in template for template, _ in shown)} >= set(
        FILTERS
    ) - {"lower"}
    assert parse_template("{g|lower}").text({"g": "7A"}) == "7a"


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("n>=238119", True),
        ("n > 238119", False),
        ("x<10", True),
        ("grade=7a", True),
        ("grade == '7a'", True),
        ("grade!=7a", False),
        ("grade<7b", True),
        ("grade>10", True),
        ("full name=Ann Bo", True),
        ("user.age<=7", True),
        ("on=true", True),
        ("none=", True),
        ("empty!=''", False),
        ("surname=Nan", True),
        ("x<inf", True),
    ],
)
def test_a_condition_compares_numbers_if_both_are_else_text(condition: str, holds: bool) -> None:
    assert parse_condition(condition).holds(ROW) is holds


@pytest.mark.parametrize("condition", ["grade", "", ">3", "= 4", " " * 100_000 + "x"])
def test_a_condition_that_is_not_understood_is_one_error(condition: str) -> None:
    with pytest.raises(SettingsError, match="not a condition") as caught:
        parse_condition(condition)
    assert "grade>=6" in caught.value.hint
