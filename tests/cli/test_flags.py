"""The options of every command, frozen, and that what hints and help name is there.

``python tests/cli/test_flags.py`` writes ``flags.txt`` again: check the difference before you commit it.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click import Context
from typer.main import get_command
from typer.testing import CliRunner

from cpulm.cli.main import app
from cpulm.cli.parser import OLD_SPELLINGS, option_name
from cpulm.cli.peer_flags import PEERS
from cpulm.cli.setting_flags import FLAGS
from cpulm.errors import CpulmError
from cpulm.settings.resolve_settings import allowed_values, known_keys

ROOT = Path(__file__).parents[2]
FROZEN = Path(__file__).with_name("flags.txt")

TOP: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
COMMANDS: dict[str, Any] = {
    f"{name} {inner}" if inner not in ("", "list") else name: command
    for name, top in TOP.items()
    for inner, command in getattr(top, "commands", {"": top}).items()
}
"""By what is typed behind ``cpulm``: ``train``, ``runs``, ``runs rm``."""
READS_TEXT = ("train", "sweep", "tokenize", "evaluate", "benchmark")

NOT_OURS = {
    **dict.fromkeys(("--what", "--who", "--why", "--mode"), "systemd-inhibit"),
    **dict.fromkeys(("--query-gpu", "--format"), "nvidia-smi"),
    "--print-path": "xcode-select",
    "--user": "pip and systemctl",
    "--logdir": "tensorboard",
    "--local-addr": "torchrun",
    "--extra-index-url": "pip",
    "--version": "compilers, and cpulm itself",
    "--help": "every command",
}
"""Options in strings that are of other programs, or of every command."""


def listing() -> str:
    """One line for each argument and option of each command; those that no help shows are in brackets."""
    lines = []
    for name, command in COMMANDS.items():
        for one in command.params:
            shown = option_name(one)
            lines.append(f"{name:<10} {f'({shown})' if getattr(one, 'hidden', False) else shown}")
    return "\n".join(lines) + "\n"


def test_the_options_of_all_commands_are_those_of_the_list() -> None:
    assert listing() == FROZEN.read_text(encoding="utf-8")


def visible(command: str) -> set[str]:
    """The options of a command that its help shows."""
    shown = [one for one in COMMANDS[command].params if not getattr(one, "hidden", False)]
    return {option for one in shown for option in (*one.opts, *one.secondary_opts)} | {"--help"}


class Said(NamedTuple):
    """A string of the package, as a user may read it, with X for what is filled in."""

    place: str
    text: str


def said() -> Iterator[Said]:
    """All strings but docstrings; of commands those too, for they are their help."""
    functions = {command.callback.__name__ for command in COMMANDS.values()}
    for source in sorted((ROOT / "cpulm").rglob("*.py")):
        tree = ast.parse(source.read_text(encoding="utf-8"))
        name, within = str(source.relative_to(ROOT)), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                within.add(id(node.value))
            elif isinstance(node, ast.JoinedStr):
                within |= {id(part) for part in ast.walk(node) if part is not node}
                parts = [str(one.value) if isinstance(one, ast.Constant) else "X" for one in node.values]
                yield Said(f"{name}:{node.lineno}", "".join(parts))
            elif isinstance(node, ast.FunctionDef) and node.name in functions and "cli" in source.parts:
                yield Said(f"{name}:{node.lineno}", ast.get_docstring(node) or "")
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within:
                yield Said(f"{name}:{node.lineno}", node.value)


def wrong_in(one: Said) -> Iterator[str]:
    """What a string names that the parser does not know."""
    for quoted, example in re.findall(r"`(cpulm [^`]*)`|^    (cpulm .*)$", one.text, re.MULTILINE):
        line = quoted or example
        words = shlex.split(line.split(" | ")[0])
        two = " ".join(words[1:3])
        name = two if two in COMMANDS else words[1]
        options = [word.split("=")[0] for word in words if word.startswith("--")]
        if name not in COMMANDS:
            if not name.startswith("-") and name not in ("X", "COMMAND"):
                yield f"{one.place}: `{line}`: no command {name}"
        else:
            unknown = [option for option in options if option not in visible(name)]
            yield from (f"{one.place}: `{line}`: {name} has no {option}" for option in unknown)
    rest = re.sub(r"`cpulm [^`]*`", "", one.text)
    rest = re.sub(r"^    cpulm .*$", "", rest, flags=re.MULTILINE)
    by_text = re.findall(r"--set ([a-z]+\.[a-z_0-9]+)", one.text)
    yield from (f"{one.place}: there is no setting {key}" for key in by_text if key not in known_keys())
    for option in re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*(?![\w-])", rest):
        takers = {name for name in COMMANDS if option in visible(name)}
        if option not in NOT_OURS and not takers:
            yield f"{one.place}: {option} is not an option of any command"
        if "cpulm/data/readers.py" in one.place and not takers.issuperset(READS_TEXT):
            yield f"{one.place}: {option} is not an option of each of {READS_TEXT}"
        stem = Path(one.place.split(":")[0]).stem if one.place.startswith("cpulm/cli/") else ""
        if stem in COMMANDS and option not in NOT_OURS and stem not in takers and "`cpulm" not in one.text:
            yield f"{one.place}: cpulm {stem} has no {option}"


ALLOWED = ("cpulm/cli/parser.py", "cpulm/cli/peer_flags.py", "cpulm/cli/setting_flags.py")
"""Tables of spellings."""


def test_every_command_and_option_in_a_message_is_there() -> None:
    strings = [one for one in said() if not one.place.startswith(ALLOWED)]
    assert len(strings) > 1000
    assert [problem for one in strings for problem in wrong_in(one)] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("go on with `cpulm resum runs/tiny-1`", "no command resum"),
        ("try `cpulm evaluate X --set data.errors=replace`", "evaluate has no --set"),
        ("such as --set train.lrr=1", "no setting train.lrr"),
        ("give --vocabulary-size X", "--vocabulary-size is not an option"),
        ("such as `cpulm sweep --random-seed 3`", "sweep has no --random-seed"),
    ],
)
def test_a_wrong_hint_is_found(text: str, problem: str) -> None:
    assert problem in " ".join(wrong_in(Said("somewhere.py:1", text)))


def test_every_named_option_and_every_name_of_a_peer_leads_to_a_setting() -> None:
    assert {flag.key for flag in FLAGS.values()} <= set(known_keys())
    for peer, ours in PEERS.items():
        assert ours in known_keys() or ours == "RUN" or ours.startswith(("--", "cpulm resume")), peer
        assert f"--{peer}" not in visible("train"), f"{peer} is an option of cpulm's own"


def test_old_spellings_stand_for_options_that_are_there() -> None:
    for command, spellings in OLD_SPELLINGS.items():
        assert set(spellings.values()) <= visible(command)
        assert not set(spellings) & visible(command)


def test_every_option_says_what_it_is_for() -> None:
    parameters = [one for command in COMMANDS.values() for one in command.params]
    assert [one.opts for one in parameters if not one.help] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_eighty_columns_and_has_no_doubled_blank_lines(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        app([*name.split(), "--help"])
    page = capsys.readouterr().out
    assert ended.value.code == 0
    assert [line for line in page.splitlines() if len(line) > 80] == []
    assert "\n\n\n" not in page.rstrip()
    assert "<bool>" not in page
    assert page.startswith(f"Usage: cpulm {name}")
    named = page.replace("--[no-]", "--")
    assert all(option in named for option in visible(name) if re.match("--(?!no-)", option))


@pytest.mark.parametrize("name", ["train", "sweep", "benchmark", "generate", "chat", "serve", "evaluate"])
def test_help_lists_the_precisions_that_a_command_takes(name: str, tmp_path: Path) -> None:
    (option,) = (one for one in COMMANDS[name].params if "--precision" in one.opts)
    told = re.findall("[a-z]+[0-9]*", option.help.partition(".")[0].replace(" or ", " "))
    assert [one.value for one in option.shell_complete(Context(COMMANDS[name]), "")] == told
    run = tmp_path / "none"
    with_text = ["--data", str(run), "--set", "train.lr=1,2"][: 4 if name == "sweep" else 2]
    rest = with_text if name in ("train", "sweep", "benchmark") else [str(run)]
    rest += ["--port", "0"] if name == "serve" else []
    for word in allowed_values("runtime.precision"):
        done = CliRunner().invoke(app, [name, *rest, "--precision", word])
        about_it = isinstance(done.exception, CpulmError) and "--precision" in done.exception.message
        assert about_it == (word not in told), (name, word, done.exception)


def test_what_tokenize_refuses_its_help_does_not_name(tmp_path: Path) -> None:
    by_name = {option: one for one in COMMANDS["tokenize"].params for option in one.opts}
    assert "token folder" not in by_name["--data"].help
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 50)
    known = [one.value for one in by_name["--set"].shell_complete(Context(COMMANDS["tokenize"]), "")]
    assert known == [f"{key}=" for key in known_keys() if key.startswith("data.")]
    (example,) = re.findall(r"\w+\.\w+(?==)", by_name["--set"].help)
    assert f"{example}=" in known
    command = ["tokenize", str(text), "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, [*command, "--set", "train.weight_decay=0.2"]).exception
    assert isinstance(refused, CpulmError)


def test_what_one_command_explains_the_others_list() -> None:
    """Ten options of how files are read would be a fifth of each page."""
    pages = {name: CliRunner().invoke(app, [name, "--help"]).stdout for name in ("tokenize", "train")}
    assert "Column or field that holds the text of a row." in pages["tokenize"]
    assert "Column or field" not in pages["train"]
    assert "--field, --template, " in pages["train"]


if __name__ == "__main__":
    FROZEN.write_text(listing(), encoding="utf-8")
