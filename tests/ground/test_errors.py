"""Exit codes, on which scripts rely: numbers, words, and the one table in the docs."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from cpulm import errors
from cpulm.errors import out_of_memory
from cpulm.exit_codes import EXIT_CODES, exit_in_words

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.CpulmError, 1),
        (errors.SettingsError, 2),
        (errors.DataError, 3),
        (errors.DivergedError, 4),
        (errors.ResourceError, 5),
        (errors.StoppedError, 75),
        (errors.AbortedError, 130),
    ],
)
def test_exit_codes(error: type[errors.CpulmError], code: int) -> None:
    assert error.exit_code == code
    assert exit_in_words(code) == f"{EXIT_CODES[code]} (exit code {code})"
    raised = error("what is wrong", "what to do")
    assert (str(raised), raised.message, raised.hint) == ("what is wrong", "what is wrong", "what to do")


def test_the_docs_have_one_table_of_them() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}
    rows = {
        name: re.findall(r"^\| (\d+) \| ([a-z].+) \|$", text, re.MULTILINE) for name, text in pages.items()
    }
    assert dict(rows["reliability.md"]) == {str(code): words for code, words in EXIT_CODES.items()}
    assert [name for name, text in pages.items() if "| exit code |" in text] == ["reliability.md"]


def test_the_script_beside_the_package_knows_the_same_number() -> None:
    """It runs before the package is installed, so it cannot ask it."""
    script = (ROOT / "scripts" / "train_cpu.py").read_text(encoding="utf-8")
    assert f"STOPPED = {errors.StoppedError.exit_code}\n" in script


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "none is left"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (
            ImportError("\nIMPORTANT:\n\nOriginal error was: x.so: failed to map segment\n"),
            "Original",
        ),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (RuntimeError("shapes do not fit"), ""),
        (ValueError("out of memory"), ""),
        (ImportError("\n"), ""),
    ],
)
def test_memory_that_the_system_refused_is_known_by_what_libraries_say(error: Exception, said: str) -> None:
    found = out_of_memory(error)
    assert found.startswith(said)
    assert bool(found) == bool(said)
