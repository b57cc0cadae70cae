"""What the README and the guides tell a reader to type works, word by word.

Every page is read from top to bottom in a small world that has the files it speaks of: text to learn from,
runs that were begun. Commands run as they stand there. Only what they train is made small, through the
environment, which stands below every option a command gives itself: a model of one layer, one thread, and a
target loss that the first validation reaches, so that a night's run ends after one update; and what is to be
trained overnight is trained at once, for nothing may outlive a test.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from forked import forks as forks
from typer.main import get_command

from cpulm.benchmark import pilots, planner, step_benchmark, suite
from cpulm.cli import benchmark
from cpulm.cli.main import app, main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_RUN = {
    "bash train_cpu.sh": "makes an environment and downloads torch",
    "bash run_tests.sh": "runs this test",
    "pip install": "downloads",
    "source .venv/bin/activate": "changes the reader's shell",
    "python benchmarks/pilots.py": "trains for minutes, outside the package",
    "tensorboard --logdir": "serves a page until it is stopped",
    "apt-get install": "changes the system",
    "python scripts/build_wheels.py": "compiles for every platform, for minutes",
    "python scripts/conformance.py": "runs what was compiled",
    "debootstrap": "downloads a system",
    "cpulm train notes/ --preset small --nproc 2": "starts processes, as tests/distributed does",
    "cpulm train notes/ --preset small --steps 2000 --nnodes": "waits for another machine",
    "cpulm train notes/ --preset small --nnodes": "waits for another machine",
    "cpulm train notes/ --preset medium --max-time 10h": "waits for other machines",
    "torchrun ": "another program, that starts processes",
    "CPULM_OUT=": "needs a cluster",
    "PIP=": "for the next ones",
    "$PIP": "downloads",
    "export ": "for the next ones",
    "PYTHON=": "for the next ones",
    "$PYTHON -m cpulm": "runs on another CPU, which qemu emulates; its options are looked at",
}
"""The only commands that are looked at and not run, by how they begin, and why."""

SMALL = {
    "CPULM_MODEL__N_LAYER": "1",
    "CPULM_MODEL__N_HEAD": "2",
    "CPULM_MODEL__N_EMBD": "16",
    "CPULM_MODEL__BLOCK_SIZE": "16",
    "CPULM_DATA__SOURCE": "notes",
    "CPULM_DATA__VOCAB_SIZE": "1024",
    "CPULM_TRAIN__MICRO_BATCH_SIZE": "2",
    "CPULM_TRAIN__GRAD_ACCUM_STEPS": "1",
    "CPULM_TRAIN__TARGET_LOSS": "1000",
    "CPULM_EVAL__EVERY": "1",
    "CPULM_EVAL__BATCHES": "1",
    "CPULM_SAMPLE__MAX_NEW_TOKENS": "2",
    "CPULM_RUNTIME__DEVICE": "cpu",
    "CPULM_RUNTIME__THREADS": "1",
    "CPULM_RUNTIME__COMPILE": "off",
    "CPULM_LOG__REPORT": "false",
}

NOT_COMMANDS = {"text", "yaml", "json", "ini", "xml"}
"""Blocks of these languages show something. Every other but Python holds commands, also an unnamed one."""

_FENCE = re.compile(r"^ *```([^\n`]*)\n(.*?)^ *```[ \t]*$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(cpulm(?: [^`]*)?)`(?!`)")


class PageError(Exception):
    """A command on a page that cannot be what a reader is to type; names the page and the line."""


@dataclass(frozen=True)
class Command:
    """One command as typed: the words of each part between pipes, and where it stands."""

    place: str
    line: str
    parts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Block:
    """A fenced block: either Python, or commands."""

    place: str
    python: str | None = None
    commands: list[Command] = field(default_factory=list)


def blocks(page: Path) -> list[Block]:
    """The blocks of ``page`` that a reader runs, from top to bottom."""
    text = page.read_text(encoding="utf-8")
    found = []
    if "```" in _FENCE.sub("", text):
        raise PageError(f"{page.name}: a fence ``` that does not begin or end a block")
    for match in _FENCE.finditer(text):
        language, body = match[1].strip(), match[2]
        first = text.count("\n", 0, match.start(2)) + 1
        if language == "python":
            found.append(Block(f"{page.name}:{first}", python=body))
        elif language not in NOT_COMMANDS:
            commands = _commands(page.name, first, body, has_prompts=language == "console")
            found.append(Block(f"{page.name}:{first}", commands=commands))
    return found


def inline_commands(page: Path) -> list[Command]:
    """What stands as `cpulm ...` in the running text and the tables of ``page``."""
    text = page.read_text(encoding="utf-8")
    text = _FENCE.sub(lambda block: "\n" * block.group().count("\n"), text)
    found = []
    for match in _INLINE.finditer(text):
        place = f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}"
        line = " ".join(match[1].split())
        found.append(Command(place, line, (tuple(shlex.split(line)),)))
    return found


def _commands(page: str, first: int, body: str, *, has_prompts: bool) -> list[Command]:
    """The commands of a block; in a console block those behind a ``$``, the rest is what they print."""
    found = []
    continued = ""
    for number, line in enumerate(body.splitlines(), first):
        if has_prompts and not continued:
            if not line.startswith("$ "):
                continue
            line = line[2:]
        if line.endswith("\\"):
            continued += line[:-1]
            continue
        line, continued = continued + line, ""
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|")
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError as error:
            raise PageError(f"{page}:{number}: `{line}`: {error}") from error
        if words:
            found.append(Command(f"{page}:{number}", line.split("  #")[0].strip(), _between_pipes(words)))
    return found


def _between_pipes(words: list[str]) -> tuple[tuple[str, ...], ...]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "|":
            parts.append([])
        else:
            parts[-1].append(word)
    return tuple(map(tuple, parts))


def check_options(command: Command) -> None:
    """Hold the names in a ``cpulm`` command against those that cpulm has; values are not looked at.

    Raises:
        PageError: where the subcommand or an option does not exist.
    """
    for part in command.parts:
        if part[:2] == ("bash", "train_cpu.sh"):
            part = ("cpulm", "train", *part[2:])  # the script hands its options on
        elif part[:3] == ("$PYTHON", "-m", "cpulm"):
            part = part[2:]
        name, *arguments = part
        if name != "cpulm" or not arguments:
            continue
        here: Any = get_command(app)  # typer's parameters have no type of their own that every version has
        if not arguments[0].startswith("-"):
            if arguments[0] not in here.commands:
                raise PageError(f"{command.place}: `{command.line}`: cpulm has no command {arguments[0]}")
            here = here.commands[arguments.pop(0)]
            if inner := getattr(here, "commands", None):
                here = inner[arguments.pop(0) if arguments[:1] and arguments[0] in inner else "list"]
        known = {"--help", "-h"}.union(*([*param.opts, *param.secondary_opts] for param in here.params))
        for word in arguments:
            option = word.split("=")[0]
            if option.startswith("--") and option not in known:
                raise PageError(f"{command.place}: `{command.line}`: cpulm has no option {option} here")


@pytest.fixture(autouse=True)
def small(_own_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that is trained here is small; torch gets its threads back."""
    import torch

    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def first_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of, made once."""
    world = tmp_path_factory.mktemp("world")
    (world / "notes").mkdir()
    for page in PAGES:
        shutil.copy(page, world / "notes")
    # A page asks for " self" as one token: the files with most of it are taken, whatever their names.
    sources = sorted((ROOT / "cpulm").rglob("*.py"))
    sources.sort(key=lambda source: source.read_text(encoding="utf-8").count(" self"), reverse=True)
    for number, source in enumerate(sources[:24]):
        (world / "notes" / f"{number}.txt").write_bytes(source.read_bytes())
    words = "the disk of machine number {0} is {0} per cent full, a job of {1} seconds began"
    lines = [words.format(number, number * 7919 % 10007) for number in range(2000)]
    grades = ("6B", "6C", "7A+")
    routes = "".join(f'{grades[n % 3]},"[[{n % 11}, {n % 18}], [3, 8]]"\n' for n in range(2000))
    (world / "routes.csv").write_text(f"grade,holds\n{routes}")
    (world / "log.jsonl").write_text("".join(f'{{"message": "{line}"}}\n' for line in lines))
    talk = '[{{"from": "human", "value": "{0} + 1?"}}, {{"from": "gpt", "value": "{1}"}}]'
    talks = "".join(f'{{"conversations": {talk.format(n, n + 1)}}}\n' for n in range(500))
    (world / "chats.jsonl").write_text(talks)
    (world / "prompt.txt").write_text("def ")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        for name, value in SMALL.items():
            patch.setenv(name, value)
        for preset in ("tiny", "small"):
            assert cpulm(patch, ["train", "--preset", preset, "--headless"]) == 0
    run = world / "runs" / "tiny-1"
    shutil.copy(run / "latest.pt", run / "step-00001200.pt")
    return world


@pytest.fixture
def world(first_world: Path, forks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world for one page, and the current folder."""
    shutil.copytree(first_world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


def cpulm(patch: pytest.MonkeyPatch, arguments: list[str], stdin: str = "def \n\n") -> object:
    """The exit code of ``cpulm ARGUMENTS`` in this process."""
    with patch.context() as inner:
        inner.setattr(sys, "argv", ["cpulm", *arguments])
        inner.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


def run(command: Command, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run ``command`` as it stands.

    Raises:
        PageError: where it fails, or is neither cpulm's nor on the list of those that are not run.
    """
    check_options(command)
    stdin = "def \n\n"
    for part in command.parts:
        name, *arguments = part
        is_known = any(" ".join(part).startswith(known) for known in NOT_RUN)
        if name == "echo" and len(command.parts) > 1:
            stdin = " ".join(arguments) + "\n"
        elif name == "cpulm" and not is_known:
            code = cpulm(patch, [word for word in arguments if word != "--overnight"], stdin)
            said = capsys.readouterr().err
            if code != 0:
                raise PageError(f"{command.place}: `{command.line}` ended with {code}: {said}")
        elif not is_known:
            raise PageError(
                f"{command.place}: `{command.line}` is no command of cpulm. Where the block shows text, "
                "begin it with ```text; where a test cannot run the command, say why in NOT_RUN"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_blocks_of_a_page_say_works(
    page: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nine presets and ten sizes take minutes; one and three go the same way.
    monkeypatch.setattr(suite, "preset_names", lambda: ["tiny"])
    monkeypatch.setattr(planner, "SHAPES", ((1, 8, 2), (1, 16, 2), (2, 16, 2)))
    monkeypatch.setattr(pilots, "_SECONDS", (1.0, 1.0))
    monkeypatch.setattr(benchmark, "_SECONDS", 0.1)
    monkeypatch.setattr(benchmark, "_QUICK_SECONDS", 0.1)
    monkeypatch.setattr(step_benchmark, "SIDES", (512,))
    for block in blocks(page):
        if block.python is not None:
            exec(compile(block.python, block.place, "exec"), {})
        for command in block.commands:
            run(command, monkeypatch, capsys)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_running_text_have_the_options_they_name(page: Path) -> None:
    for command in inline_commands(page):
        check_options(command)


def test_the_readme_and_the_guide_to_writing_are_read_at_all() -> None:
    """Guards the two tests above against a reader that finds nothing."""
    lines = [command.line for page in PAGES for block in blocks(page) for command in block.commands]
    assert "bash train_cpu.sh" in lines
    assert "cpulm resume runs/small-1 --max-time 4h" in lines
    assert 'echo "import " | cpulm generate runs/tiny-1' in lines
    assert "cpulm train --preset 4x192 --device cpu" in [line.line for line in inline_commands(PAGES[0])]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```\ncpulm train --prest tiny\n```", "--prest"),
        ("```bash\ncpulm trian\n```", "no command trian"),
        ("```bash\ncpulm train --preset tinny\n```", "tinny"),
        ("```bash\ncpulm train --set train.lrr=1\n```", "train.lrr"),
        ("```bash\ncpulm generate runs/other-1\n```", "runs/other-1"),
        ("```\nsome words that were printed\n```", "```text"),
        ("```bash\nrm -rf runs\n```", "no command of cpulm"),
        ("```bash\nbash train_cpu.sh --max-tme 8h\n```", "--max-tme"),
        ("```sh\n$PYTHON -m cpulm train --max-tme 8h\n```", "--max-tme"),
        ("```bash\ncpulm sysinfo\n", "does not begin or end a block"),
        ("```console\n$ cpulm sysinfo \\\n    --jsn\nthe rest is output\n```", "--jsn"),
    ],
)
def test_a_wrong_command_on_a_page_is_found(
    text: str,
    complaint: str,
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = world / "page.md"
    page.write_text(f"# A page\n\n{text}\n")
    with pytest.raises(PageError, match=complaint):
        test_what_the_blocks_of_a_page_say_works(page, world, monkeypatch, capsys)


def test_a_wrong_option_in_running_text_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Try `cpulm resume\nRUN --max-tme 4h` once.\n")
    with pytest.raises(PageError, match=r"page.md:1.*--max-tme"):
        test_commands_in_running_text_have_the_options_they_name(page)
