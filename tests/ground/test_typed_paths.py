"""Paths in hints: a shell reads the path again, an option is never meant, and no terminal obeys it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from cpulm.command import typed
from cpulm.ui.console import say


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells")
@pytest.mark.parametrize("path", ["runs/tiny-1", "my notes/run $1", "it's", "-x", "--out", "a\nb", "`id`"])
def test_a_shell_reads_the_path_again(path: str) -> None:
    (word,) = shlex.split(typed(path))
    assert Path(word) == Path(path)
    assert not word.startswith("-")


def test_a_path_is_no_command_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("the run on a page: runs/\x1b[31mred\x1b]0;title\x07/report.html")
    shown = capsys.readouterr().err
    assert "red" in shown
    assert not {"\x1b", "\x07"} & set(shown)
