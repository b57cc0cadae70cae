"""Paths in hints: a shell reads the path again, an option is never meant, and no terminal obeys it."""

from __future__ import annotations

import ast
import os
import re
import shlex
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

import cpulm
from cpulm.command import typed
from cpulm.ui.console import say, show_bug, stdout, write_text
from cpulm.ui.terminal_text import without_controls

HOSTILE = "runs/\x1b[31mred\x1b]0;title\x07\x9b2J\u202e/report.html"


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells")
@pytest.mark.parametrize("path", ["runs/tiny-1", "my notes/run $1", "it's", "-x", "--out", "a\nb", "`id`"])
def test_a_shell_reads_the_path_again(path: str) -> None:
    (word,) = shlex.split(typed(path))
    assert Path(word) == Path(path)
    assert not word.startswith("-")


def show_everywhere(path: str) -> None:
    """A path in a line, in a table, in a rich text, and in the message of a bug."""
    say(f"the run on a page: {path}")
    table = Table(path)
    table.add_row(Text(path))
    stdout().print(table, Text(path), path)
    try:
        raise RuntimeError(path)
    except RuntimeError as error:
        show_bug(type(error), error, error.__traceback__)


def test_a_path_is_no_command_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_everywhere(HOSTILE)
    for shown in capsys.readouterr():
        assert shown.count("red") >= 2
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)


def test_a_file_gets_data_as_it_is_and_a_terminal_without_controls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_text(f"{HOSTILE}\n")
    assert capsys.readouterr().out == f"{HOSTILE}\n"
    assert without_controls("a\x1b[31m\tb\n") == "a\ufffd[31m\tb\n"


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_data_on_a_terminal_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as reader, os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        write_text(f"{HOSTILE}\n")
        assert b"\x1b" not in reader.read(4096)


def quoted_places() -> list[str]:
    """Every path put into a command that cpulm prints, as it stands in the sources."""
    found = []
    for file in sorted(Path(cpulm.__file__).parent.rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            before = ""
            for part in node.values if isinstance(node, ast.JoinedStr) else ():
                if isinstance(part, ast.Constant):
                    before = str(part.value)
                elif isinstance(part, ast.FormattedValue) and re.search(PATH_FOLLOWS, before):
                    found.append(f"{file.name}: {ast.unparse(part.value)}")
                    before = ""
    return found


COMMANDS = "watch|stop|resume|generate|analyze|evaluate|at-boot|train|tokenize|sweep"
PATH_FOLLOWS = rf"cpulm ({COMMANDS})( --(config|out|data))* $"


def test_every_path_in_a_command_is_a_word_for_a_shell() -> None:
    places = quoted_places()
    assert len(places) > 15, "the pattern finds them"
    raw = [place for place in places if not re.search(r": (\w+\.)?(typed\(|place$|model$)", place)]
    assert not raw
