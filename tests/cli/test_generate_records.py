"""``cpulm generate`` with records: fields, rows, JSON, rules, and what is wrong with them."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from small_runs import settings_for, train

from cpulm.cli.main import main

GRADES = ("6A", "7A")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of rows that has learnt next to nothing: rules make its texts what they are."""
    folder = tmp_path_factory.mktemp("records")
    rows = "".join(f'{GRADES[n % 3 > 0]},"[[{n % 7}, {n % 5}], [3, 8]]"\n' for n in range(200))
    (folder / "routes.csv").write_text("grade,holds\n" + rows)
    template = "data.template={grade} {holds|each:'x{0} y{1}'|list}"
    settings = settings_for(
        folder / "routes.csv", template, "data.tokenizer=word", "train.records=true", "train.steps=2"
    )
    train(settings, folder / "run")
    return folder / "run"


def generate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cpulm", "generate", *arguments, "--threads", "1", "--seed", "1"])
        patch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capsys.readouterr()
    return ended.value.code, out, " ".join(err.split())


def test_rows_have_the_columns_of_the_table_in_its_own_form(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = ("--regex", r"x\d y\d( x\d y\d)*", "--unique", "holds", "--count", "holds=2:3")
    code, out, _ = generate(capsys, str(run), "--field", "grade=7A", "--rows", "--num-samples", "6", *rule)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, len(rows)) == (0, 6)
    for row in rows:
        holds = json.loads(row["holds"])
        assert row["grade"] == "7A"
        assert 2 <= len(holds) <= 3
        assert len(set(map(tuple, holds))) == len(holds)


def test_texts_are_lines_and_json_has_fields(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = ("--values", "grade=6A", "--values", "holds=x1 y1,x3 y8", "--num-samples", "3")
    _, out, _ = generate(capsys, str(run), *rule)
    assert len(out.splitlines()) == 3
    assert set(out.splitlines()) <= {"6A x1 y1", "6A x3 y8"}
    _, out, _ = generate(capsys, str(run), *rule, "--json")
    assert {one["fields"]["grade"] for one in json.loads(out)} == {"6A"}
    assert all(one["fields"]["holds"] in ("x1 y1", "x3 y8") for one in json.loads(out))


def test_fields_are_listed_with_how_often_each_value_was_seen(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = generate(capsys, str(run), "--fields", "--json")
    counts = json.loads(out)
    assert list(counts["grade"]) == ["7A", "6A"]
    assert 180 < sum(counts["grade"].values()) < 200
    _, out, _ = generate(capsys, str(run), "--fields")
    assert "grade" in out
    assert "holds" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--field", "grade=9A"], "no record of the training data has this value"),
        (["--field", "grade"], "is not NAME=VALUE"),
        (["--field", "grade=7A", "--prompt", "x"], "records begin with their fields, not with a prompt"),
        (["--field", "grade=7A", "--count", "holds=5"], "is not MIN:MAX"),
        (["--field", "grade=7A", "--regex", "Q"], "the text cannot begin: --regex Q allows no token"),
        (["--rows", "--json"], "two forms of output"),
        (["--prompt", "7A", "--values", "grade=7A"], "records begin with their fields"),
        (["--interactive", "--rows"], "--interactive asks for prompts"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, _, err = generate(capsys, str(run), *arguments)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(("after", "beginning"), [(0, "7A\n"), (1, "7A x")])
def test_an_error_of_a_rule_does_not_stand_behind_the_text(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], after: int, beginning: str
) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text(
        f"def allowed(written):\n    return {{'x1', 'x3'}} if len(written.tokens) < {after} else 1 / 0"
    )
    code, out, err = generate(capsys, str(run), "--field", "grade=7A", "--rules", f"{rules}:allowed")
    assert code == 2
    assert out.startswith(beginning)
    assert out.endswith("\n")
    assert "raised ZeroDivisionError" in err


def test_a_text_that_cannot_go_on_is_said_and_left_out_of_rows(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = generate(
        capsys, str(run), "--field", "grade=7A", "--rows", "--num-samples", "8", "--regex", "x3( y8|Q)|x1 y1"
    )
    assert code == 0
    assert out.splitlines()[0] == "grade,holds"
    rules = ("--regex", "x3 y8( Q)")
    code, out, err = generate(capsys, str(run), "--field", "grade=7A", "--rows", *rules)
    assert out.splitlines() == ["grade,holds"]
    assert "1 text of 1 could not go on: --regex x3 y8( Q) allows no token after" in err
    assert "1 text is left out: not a whole record" in err


def test_a_model_of_text_has_no_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 40)
    train(settings_for(text, "train.steps=1"), tmp_path / "run")
    for arguments in (["--fields"], ["--field", "grade=7A"], ["--rows"]):
        code, _, err = generate(capsys, str(tmp_path / "run"), *arguments)
        assert code == 2
        assert "data.template" in err
