"""How cpulm starts itself: the command, its environment, and the error that a process ended with.

Nothing else builds such a command. A process is started from the file ``__main__.py`` of this very package,
not with ``-m cpulm``: ``-m`` makes the working folder a place for modules, and a ``random.py`` beside the
user's notes would run instead of Python's own. ``-I`` would ignore the user's PYTHONPATH and site packages,
and ``-P`` exists only from Python 3.11 on.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from cpulm.regular_file import open_regular

ENV_PREFIX = "CPULM_"
"""``CPULM_TRAIN__LR`` is the setting ``train.lr``; names without ``__``, as CPULM_CACHE, are not settings."""

_PROGRAM = Path(__file__).with_name("__main__.py")
_TAIL_BYTES = 16 * 2**10
_OF_A_TERMINAL = ("FORCE_COLOR", "COLUMNS", "LINES")


def cpulm_command(*arguments: str, window: bool = True) -> list[str]:
    """The words that start ``cpulm ARGUMENTS`` with this Python and this package.

    Args:
        window: on Windows, False starts it with ``pythonw.exe`` if that exists: no console window opens, and
            there are no standard streams.
    """
    # A process that was itself started by pythonw.exe needs python.exe to give its children streams.
    python = re.sub(r"(?i)pythonw\.exe$", "python.exe", sys.executable)
    if not window:
        without = Path(python).with_name("pythonw.exe")
        python = str(without) if without.is_file() else python
    return [python, str(_PROGRAM), *arguments]


def typed(path: Path | str) -> str:
    """A path as a word of a command to type: quoted for the shell, and never read as an option."""
    word = str(path)
    if word.startswith("-"):
        word = f".{os.sep}{word}"
    return subprocess.list2cmdline([word]) if os.name == "nt" else shlex.quote(word)


def log_environment(*, settings: bool = True) -> dict[str, str]:
    """The environment of a process whose output goes to a file or a pipe.

    The output is plain UTF-8 in lines that are not wrapped, and a crash inside a library leaves its Python
    traceback there.

    Args:
        settings: whether settings such as ``CPULM_TRAIN__LR`` are passed on.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_A_TERMINAL and (settings or not is_setting(name))
    }
    return {**kept, "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8", "PYTHONFAULTHANDLER": "1"}


def is_setting(name: str) -> bool:
    """Whether the environment variable ``name`` is a setting."""
    return name.upper().startswith(ENV_PREFIX) and "__" in name


def last_error(output: str) -> str:
    """The message of the last line that begins with ``error:``; empty if there is none."""
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    return errors[-1].removeprefix("error:").strip() if errors else ""


def last_line(output: str) -> str:
    """The last line that is not blank; empty if there is none."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def read_tail(log: Path, begin: int) -> str:
    """The last 16 KiB of what stands in ``log`` from the byte ``begin`` on; empty if it cannot be read."""
    try:
        with open_regular(log) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(begin, end - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
