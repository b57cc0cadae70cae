"""Rows that are read many at once are those that are read one by one: of CSV and JSON lines, also damaged."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from cpulm.data import text_decoding
from cpulm.data.losses import Losses
from cpulm.data.readers import read_files
from cpulm.data.reading import Reading
from cpulm.data.sources import find_files
from cpulm.errors import DataError

CELLS = ["", "a", "x,y", 'say "hi"', '"', '""', '"", ""', "b\nc", "d\re", "f\r\ng", "é东🙂", " h ", "i" * 70]
DAMAGE = [b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\n\n", b'"x', b'x"', b'""']


def outcome(path: Path, how: Reading) -> tuple[list[tuple[str, str]], Losses, str]:
    """The names and texts of all rows, what is lost, and the error that ends reading."""
    found: list[tuple[str, str]] = []
    losses, message = Losses(), ""
    try:
        found += ((piece.name, piece.text) for piece in read_files(find_files([str(path)]), how, losses))
    except DataError as error:
        message = error.message
    return found, losses, message


@pytest.mark.parametrize("seed", range(40))
def test_rows_that_are_read_together_are_those_that_are_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Many rows at once, or row by row for a special token: of whole tables and of damaged ones."""
    rng = random.Random(seed)
    width, end = rng.choice([1, 2, 3]), rng.choice(["\n", "\r\n"])
    quoted = re.compile("" if rng.random() < 0.3 else '[",\r\n]|^$')
    rows = [[rng.choice(CELLS) for _ in range(width)] for _ in range(60)]
    lines = [
        ",".join('"{}"'.format(cell.replace('"', '""')) if quoted.search(cell) else cell for cell in row)
        for row in rows
    ]
    head = ["text", "n,text", "n,text,m"][width - 1]
    path = tmp_path / "a.csv"
    path.write_bytes(end.join([head, *lines, ""]).encode())
    monkeypatch.setattr(text_decoding, "_CHUNK_BYTES", rng.choice([50, 400, 5000]))
    together, alone = Reading(skip_bad=True), Reading(skip_bad=True, template="<|row|>{text}")
    column = 0 if width == 1 else 1
    expected = [row[column] for row in rows if row[column]]
    assert [text for _, text in outcome(path, together)[0]] == expected
    assert outcome(path, together) == outcome(path, alone)
    ways = [(together, alone)]
    if width > 1:
        template, where = "{n|upper}{text|replace:'x':'yy'}{n}", ("n!=a", "text<h")
        ways.append(
            (Reading(template=template, where=where), Reading(template="<|row|>" + template, where=where))
        )
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 3])):
        place = rng.randrange(20, len(data))
        data[place:place] = rng.choice(DAMAGE)
    path.write_bytes(data)
    for errors in ("strict", "replace"):
        how: dict[str, Any] = {"errors": errors, "skip_bad": rng.random() < 0.8}
        for together, alone in ways:
            assert outcome(path, together._replace(**how)) == outcome(path, alone._replace(**how))


LINES = [
    '{"text": "a"}',
    '{"text": "é\\n东", "n": [1, {"b": null}]}',
    "",
    "  ",
    '{"text": ""}',
    '{"n": 1}',
    '{"text": "b"} {"text": "c"}',
    '{"text":',
    '"d"}',
    "[1]",
    '{"text": "\\ud800"}',
    '{"text": "e\0"}',
    '{"text": "f", "n": NaN}',
    '{"n": {"text": "g"}}',
]


def test_lines_of_json_that_are_read_together_are_those_that_are_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, path = random.Random(1), tmp_path / "a.jsonl"
    for size in (30, 300, 1 << 16):
        monkeypatch.setattr(text_decoding, "_CHUNK_BYTES", size)
        for _ in range(20):
            lines = [rng.choice(LINES if rng.random() < 0.2 else LINES[:2]) for _ in range(30)]
            path.write_text("\n".join(lines), encoding="utf-8")
            found, losses, _ = outcome(path, Reading(skip_bad=True))
            expected, bad = [], 0
            for number, line in enumerate(lines, 1):
                try:
                    text = json.loads(line, strict=True)["text"] if line.strip() else ""
                    text.encode()
                except (ValueError, KeyError, TypeError):
                    bad += 1
                else:
                    expected += [(f"a.jsonl:{number}", text)] if text else []
            assert (found, losses.skipped) == (expected, bad)


ROWS = [
    *({"n": n, "text": f"{n}"} for n in range(5)),
    {"n": None, "text": "null"},
    {"n": [1, [2, "3"]], "text": "é"},
    {"text": "no n"},
    {"n": "seven", "text": ""},
    {"n": "a\0", "text": "b"},
    {"n": "\ud800", "text": "c"},
    {"n": {"m": 2.5}, "text": 7},
]


@pytest.mark.parametrize(
    "template",
    ["{n}: {text}", "{n|default:'-'}{text}", "{n.m|round:0|default:x}", "{n|json}{text|strip}", "{n|list}"],
)
@pytest.mark.parametrize("where", [(), ("n<3",), ("text!=2", "n>=0")])
def test_templates_of_rows_that_are_read_together_are_those_of_rows_that_are_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, where: tuple[str, ...]
) -> None:
    monkeypatch.setattr(text_decoding, "_CHUNK_BYTES", 120)
    rng = random.Random(template)
    rows = [rng.choice(ROWS[:5] if rng.random() < 0.9 else ROWS) for _ in range(200)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    together = Reading(template=template, where=where, skip_bad=True)
    alone = together._replace(template="<|row|>" + template)
    assert outcome(path, together) == outcome(path, alone)
    files = find_files([str(path)])
    values = [[piece.values for piece in read_files(files, how)] for how in (together, alone)]
    assert values[0] == values[1]
