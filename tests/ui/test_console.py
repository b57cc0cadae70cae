"""Which output goes to which stream; no text and no console causes an error."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpulm.errors import ResourceError
from cpulm.ui import console
from cpulm.ui.tables import key_values, rows
from cpulm.ui.terminal_text import fit, fold, harmless


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


class Stream(io.TextIOWrapper):
    """A stream of any encoding that may claim to be a terminal."""

    def __init__(self, encoding: str = "utf-8", terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", newline="")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def written(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined,no-any-return]


def test_errors_go_to_stderr_with_one_message_and_one_hint(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_error("there is no preset 'tinny'", "did you mean tiny?")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: there is no preset 'tinny'\n hint: did you mean tiny?\n"


def test_a_value_of_any_length_is_named_in_some_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.show_error(f"there is no device {'x' * 100_000!r}: choose cpu")
    err = capsys.readouterr().err
    assert err.startswith("error: there is no device 'xxx")
    assert "xxx ... (96,1" in err
    assert err.endswith("xxx': choose cpu\n")
    assert len(err) < 4000


def test_an_error_without_a_hint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_error("aborted")
    assert capsys.readouterr().err == "error: aborted\n"


def test_text_from_users_is_neither_markup_nor_terminal_codes(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_error("no [bold red]file[/] \x1b[2J:smile: \x07", "try [link=x]that[/link]")
    err = capsys.readouterr().err
    assert "[bold red]file[/]" in err
    assert ":smile:" in err
    assert "[link=x]that[/link]" in err
    assert "\x1b" not in err
    assert "\x07" not in err


def test_long_messages_are_unwrapped_in_a_pipe_and_wrapped_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = "the folder /" + "deep/" * 30 + "file.txt cannot be read because it is not there at all"
    pipe = Stream()
    monkeypatch.setattr(sys, "stderr", pipe)
    console.show_error(message)
    assert pipe.written() == f"error: {message}\n"
    terminal = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    console.show_error("word " * 40)
    lines = terminal.written().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert len(lines) > 3
    assert all(len(line) <= 60 for line in lines)
    assert all(line.startswith("       ") for line in lines[1:])


@pytest.mark.parametrize(
    ("environment", "terminal", "coloured"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colour_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], terminal: bool, coloured: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Stream(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    console.show_error("wrong")
    assert ("\x1b[1;31m" in stream.written()) is coloured


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1"])
def test_a_console_without_utf8_gets_ascii_frames_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    stream = Stream(encoding, terminal=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    console.stdout().print(rows("日本", ["name", "größe"], [["日本語", 3], ["\udc80", 4]]))
    assert console.write_text("text 日本語 ✓\n")
    written = stream.written()
    assert "text ??? ?" in written
    assert "─" not in written
    assert "---" in written


def test_json_stays_json_on_any_console(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"text": "日本語 \U0001f600 \udc80", "loss": float("nan"), "path": Path("a") / "b", "none": None}
    for encoding, terminal in (("ascii", True), ("utf-8", False)):
        stream = Stream(encoding, terminal)
        monkeypatch.setattr(sys, "stdout", stream)
        console.print_json(value)
        back = json.loads(stream.written())
        assert back == {**value, "loss": "nan", "path": str(Path("a") / "b")}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16"])
def test_a_file_gets_utf8_whatever_the_locale_says(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream, log = Stream(encoding), Stream(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", log)
    console.write_text("你好\n")
    console.stdout().print("größe ✓")
    console.write_json_line('"世界"')
    console.say("世界")
    assert stream.buffer.getvalue() == '你好\ngröße ✓\n"世界"\n'.encode()  # type: ignore[attr-defined]
    assert log.buffer.getvalue() == "世界\n".encode()  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_data_for_a_full_disk_is_an_error_and_progress_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(full, write_through=True))
        console.say("progress")
        console.show_warning("beware")
    for write in (console.write_text, console.print_json, lambda text: console.stdout().print(text)):
        with Path("/dev/full").open("w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            with pytest.raises(ResourceError, match="cannot be written: No space left"):
                write("text")
            assert console.write_text("dropped from now on")


def test_a_reader_that_leaves_is_not_an_error() -> None:
    code = (
        "from cpulm.ui.console import write_text\n"
        "import sys\n"
        "sys.stdin.read()\n"
        "print([write_text('x' * 100_000) for _ in range(3)].count(False) >= 1, file=sys.stderr)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.close()
        child.stdout = None
        _, err = child.communicate(b"")
    assert err.split() == [b"True"]
    assert child.returncode == 0


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, cpulm.ui; print([name for name in ('rich', 'tensorboard') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], env=os.environ, text=True).strip() == "[]"


def test_tables_in_a_pipe_keep_paths_whole_and_have_no_blank_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    path = "/" + "deep/" * 60
    console.stdout().print(key_values("Machine", [("cpu", "AMD [x]"), ("path", path), ("battery", None)]))
    console.stdout().print(rows("Presets", ["name", "size"], [["tiny", "3.2 M"], ["small", None]]))
    lines = stream.written().splitlines()
    assert f"  path  {path}" in lines
    assert "  cpu   AMD [x]" in lines
    assert all(line == line.rstrip() for line in lines)
    assert not any("battery" in line for line in lines)
    assert "\x1b" not in stream.written()


def test_tables_fit_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    records = [[f"preset-{number}", number * 1000, "words " * 12] for number in range(3)]
    console.stdout().print(rows("Presets", ["name", "tokens", "meaning"], records))
    lines = stream.written().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any(line.split()[:3] == ["preset-2", "2000", "words"] for line in lines)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\tb", "a    b"),
        ("\x1b[31m", "\ufffd[31m"),
        ("a\nb", "a b"),
        ("right\u202eleft", "right\ufffdleft"),
        ("日本", "日本"),
        ("\x9b2J", "\ufffd2J"),
    ],
)
def test_text_cannot_control_a_terminal(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_fitting_and_folding_count_cells() -> None:
    assert fit("日本語", 5) == "日本…"
    assert fit("日本語", 8) == "日本語  "
    assert fold("日本語\n\nab", 4, 9) == ["日本", "語", "", "ab"]
    assert fold("a\n" * 50, 4, 3) == ["a", "a", "a"]
