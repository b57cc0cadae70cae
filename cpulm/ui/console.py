"""The one owner of output: data on stdout, progress, warnings and errors on stderr.

Colour follows NO_COLOR, FORCE_COLOR and TERM=dumb. Text from users and models is never read as
markup. A file or a pipe gets UTF-8, whatever the locale says; a character that a terminal's encoding lacks is
replaced. Data that cannot be written is an error; progress that cannot be written is dropped.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from cpulm.errors import ResourceError
from cpulm.ui.terminal_text import harmless, without_controls

_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.EINVAL)
"""A pipe without a reader, a closed terminal, and Windows's error for both."""
_PIPE_WIDTH = 10_000
"""Width of a log or a pipe: its lines are never wrapped."""
_HEAD, _TAIL = 3000, 900
"""Characters of a longer message that are shown: names and values in it may have any length."""


def stdout() -> Console:
    """The console of data: tables, answers, generated text."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The console of progress, warnings and errors."""
    return _console(sys.stderr)


def say(content: RenderableType) -> None:
    """Write ``content`` on stderr, one line unless it has several.

    A closed terminal, or a log on a full disk, must not end a run: what cannot be written is dropped.
    """
    shown = harmless(content, keep_lines=True) if isinstance(content, str) else content
    stderr().print(shown, soft_wrap=True)


def is_utf8(stream: TextIO) -> bool:
    """Whether every character can be written to ``stream``."""
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")


def print_json(value: Any) -> None:
    """Write ``value`` as indented JSON on stdout.

    Dataclasses become objects, paths become text, and non-finite floats become the strings
    ``"nan"``, ``"inf"`` and ``"-inf"``, as in :func:`cpulm.events.to_json`.
    """
    text = json.dumps(_plain(value), ensure_ascii=False, indent=2, allow_nan=False)
    write_json_line(text)


def write_json_line(text: str) -> bool:
    """Write a JSON text and a line end on stdout; False once there is no reader.

    Raises:
        ResourceError: as :func:`write_text`.
    """
    return write_text(json_for_stdout(text) + "\n")


def json_for_stdout(text: str) -> str:
    """The JSON ``text`` with what stdout cannot encode escaped, so that it stays JSON and means the same."""
    _set_encoding(sys.stdout)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = "".join(char if char.isascii() else json.dumps(char)[1:-1] for char in text)
    return text


def write_text(text: str) -> bool:
    """Write ``text`` on stdout, immediately; False once there is no reader.

    A file or a pipe gets it as it is, a terminal without what it would obey.

    A reader that closed the pipe (``| head``) is not an error: further output is dropped silently.

    Raises:
        ResourceError: if it cannot be written for another reason, such as a full disk.
    """
    return _Output(sys.stdout).write_now(text)


def write_text_or_warn(text: str) -> None:
    """As :func:`write_text`, for output that must not end the work: a failure is a warning, once."""
    try:
        write_text(text)
    except ResourceError as error:
        show_warning(f"{error.message}; the work continues without this output")


def show_error(message: str, hint: str = "", *, label: str = "error") -> None:
    """Write one message and, if given, one hint on stderr, with ``label`` before the message."""
    console = stderr()
    _labelled(console, label, "bold red" if label == "error" else "bold", message)
    if hint:
        _labelled(console, " hint", "cyan", hint)


def show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write a traceback on stderr, as ``sys.excepthook``; what its message quotes cannot move the cursor."""
    _Output(sys.stderr).write(without_controls("".join(traceback.format_exception(kind, error, trace))))


def show_warning(message: str) -> None:
    """Write one warning on stderr."""
    _labelled(stderr(), "warning", "yellow", message)


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    output = cast(TextIO, _Output(stream))
    return _HarmlessConsole(file=output, width=width, markup=False, emoji=False, highlight=False)


class _HarmlessConsole(Console):
    """A console whose only escape sequences are its own: names of files and runs bring none."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(without_controls(segment.text), segment.style)


class _Output:
    """A standard stream that decides what a failed write means: for data an error, for progress nothing.

    Everything that it does not define is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        _set_encoding(stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def write_now(self, text: str) -> bool:
        """Write and flush; False if nobody reads."""
        try:
            self._stream.write(without_controls(text) if self._stream.isatty() else text)
            self._stream.flush()
        except OSError as error:
            self._failed(error)
            return False
        return True

    def _failed(self, error: OSError) -> None:
        nobody_reads = error.errno in _NOBODY_READS
        if self._stream is not sys.stdout:
            # A log may have room again later; a reader does not return.
            if nobody_reads:
                _drop(self._stream)
            return
        _drop(self._stream)
        if not nobody_reads:
            raise ResourceError(
                f"the output cannot be written: {error.strerror}",
                "free some disk space, or write it elsewhere",
            ) from error


def _set_encoding(stream: TextIO) -> None:
    if not isinstance(stream, io.TextIOWrapper):
        return
    if not stream.isatty() and (stream.encoding or "").lower() not in ("utf-8", "utf8"):
        stream.reconfigure(encoding="utf-8", errors="replace")
    elif stream.errors not in ("replace", "backslashreplace"):
        stream.reconfigure(errors="replace")


def _drop(stream: TextIO) -> None:
    """Discard further writes, including the interpreter's own flush at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    except OSError:  # a stream without a file descriptor, as in an embedding program
        name = "stdout" if stream is sys.stdout else "stderr"
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - lives on as that
    finally:
        os.close(nowhere)


def _labelled(console: Console, label: str, style: str, message: str) -> None:
    """``label: message``, wrapped under itself if it is longer than the window."""
    indent = len(label) + 2
    room = max(20, console.width - indent)
    if (more := len(message) - _HEAD - _TAIL) > 0:
        message = f"{message[:_HEAD]} ... ({more:,} characters more) ... {message[-_TAIL:]}"
    lines = Text(harmless(message, keep_lines=True)).wrap(console, room)
    for number, line in enumerate(lines):
        line.rstrip()
        head = Text(f"{label}: ", style=style) if number == 0 else Text(" " * indent)
        say(head + line)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {spec.name: _plain(getattr(value, spec.name)) for spec in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value
