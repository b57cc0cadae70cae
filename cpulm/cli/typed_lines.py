"""What a person types to a model, line by line: text, or commands such as /set, /help, /bye."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cpulm.errors import SettingsError

if TYPE_CHECKING:
    from cpulm.generation.sampling import Sampling

_WHOLE = ("top_k", "max_new_tokens")
_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
_OPTIONAL = ("top_k", "top_p", "min_p")
_WIDTH = 22
"""Columns of a command in the help."""


@dataclass(frozen=True)
class Typed:
    """A line: its text, or the name of a command with its slash and what stands behind it."""

    text: str
    command: str = ""
    rest: str = ""


@dataclass(frozen=True)
class LineHelp:
    """What /help shows.

    Attributes:
        about: what a line does.
        commands: by their names with arguments, what those beside /set, /help and /bye do.
        blank_exits: whether an empty line ends it all; else it is passed over.
    """

    about: str
    commands: Mapping[str, str]
    blank_exits: bool

    def __str__(self) -> str:
        """The whole text."""
        also = "as Ctrl-D or an empty line does" if self.blank_exits else "as Ctrl-D does"
        rows = {
            **self.commands,
            "/set temperature 0.7": 'also top_k, top_p, min_p ("off" unsets these),\n'
            "repetition_penalty, max_new_tokens",
            "/help": "this list",
            "/bye": f"exit, {also}",
        }
        indent = f"\n{'':<{_WIDTH + 3}}"
        listed = "\n".join(
            f"  {name:<{_WIDTH}} {what.replace(chr(10), indent)}" for name, what in rows.items()
        )
        return f"{self.about}\n{listed}\nA text that begins with a slash: write two."

    @property
    def names(self) -> list[str]:
        """The commands that are passed on."""
        return ["/set", *(name.split()[0] for name in self.commands)]


def typed_lines(greeting: str, help_of: LineHelp) -> Iterator[Typed]:
    """Yield the lines of stdin until Ctrl-D or /bye; an unknown command shows the help. Ctrl-C drops a line.

    Args:
        greeting: said at a terminal.
    """
    from cpulm.ui.console import say, show_error, stderr, write_text

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it gives input() a history and line editing
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper) and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8-sig")  # of a file or a pipe, whatever the locale says
    if at_terminal:
        say(greeting)
    mark = "> "
    if stderr().color_system and not stderr().no_color and "readline" in sys.modules:
        mark = "\001\033[1;36m\002> \001\033[0m\002"  # readline does not count what is between 1 and 2
    while True:
        try:
            line = input(mark if at_terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            write_text("\n")
            continue
        except UnicodeDecodeError:
            show_error("the line is not UTF-8", "set the terminal's encoding to UTF-8")
            continue
        if not line.strip() and (not line or not help_of.blank_exits):
            if help_of.blank_exits:
                return
            continue
        if not line.startswith("/") or line.startswith("//"):
            yield Typed(line.removeprefix("/"))
            continue
        command, _, rest = line.strip().partition(" ")
        if command == "/bye":
            return
        if command in help_of.names:
            yield Typed("", command, rest.strip())
        else:
            say(str(help_of))


def with_setting(sampling: Sampling, max_new_tokens: int, words: list[str]) -> tuple[Sampling, int]:
    """``sampling`` and ``max_new_tokens`` after ``/set NAME VALUE``, given as its words.

    Raises:
        SettingsError: if there is no such setting, or the value does not fit.
    """
    name, value = words if len(words) == 2 else ("", "")
    name = name.replace("-", "_")
    if name not in _SETTINGS:
        message = f"/set has no setting {name}" if name else "/set takes a name and a value"
        raise SettingsError(message, f"settings: {', '.join(_SETTINGS)}")
    number: float | None = None
    if not (value == "off" and name in _OPTIONAL):
        try:
            number = int(value) if name in _WHOLE else float(value)
        except ValueError:
            raise SettingsError(
                f"{name} = {value!r} is not a number", "such as /set temperature 0.7"
            ) from None
    if name != "max_new_tokens":
        change: dict[str, Any] = {name: number}
        return replace(sampling, **change), max_new_tokens
    if number is None or number < 1:
        raise SettingsError(f"max_new_tokens = {value} must be 1 or more", "such as /set max_new_tokens 200")
    return sampling, int(number)
