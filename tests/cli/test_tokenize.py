"""``cpulm tokenize``: folders, streams and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cpulm.cli import tokenize
from cpulm.cli.main import main
from cpulm.data.prepare import prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import AbortedError
from cpulm.events import Event, Progress
from cpulm.settings import DataSettings

ROOT = Path(__file__).parents[2]
STORY = "The cat sat on the mat, and the dog said: don't you see? It's 9 o'clock.\n" * 60


def cpulm(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command line here; its exit code."""
    monkeypatch.setattr(sys, "argv", ["cpulm", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture
def story(in_empty_folder: Path) -> Path:
    path = in_empty_folder / "story.txt"
    path.write_text(STORY, encoding="utf-8")
    return path


def test_text_becomes_a_folder_and_a_table(
    story: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cpulm(monkeypatch, "tokenize", story, "--out", "tokens", "--vocab-size", "280") == 0
    shown = capsys.readouterr()
    folder = TokenFolder.open("tokens")
    assert folder.vocab_size == 280
    assert "bpe, 280 tokens" in shown.out
    assert f"{len(folder.train):,}" in shown.out
    assert "tokenizing" not in shown.out
    assert sorted(path.name for path in story.parent.iterdir()) == ["story.txt", "tokens"]


def test_json_is_one_object_on_stdout(
    story: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tokenizer", "char", "--val-fraction", "0.25", "--json"]
    assert cpulm(monkeypatch, "tokenize", story, "--out", "tokens", *options) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == "tokens"
    assert result["train"]["tokens"] == len(STORY) * 3 // 4 + 1
    assert result["digest"] == TokenFolder.open("tokens").digest
    assert result["tokenizer"] == "char"


def test_every_option_has_an_effect(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.jsonl").write_bytes(b'{"body": "caf\xe9 one two three"}\n' * 40)
    Path("val.txt").write_text(STORY.upper(), encoding="utf-8")
    options = ["--field", "body", "--errors", "replace", "--val-data", "val.txt"]
    assert cpulm(monkeypatch, "tokenize", "a.jsonl", "--out", "one", "--tokenizer", "byte", *options) == 0
    one = TokenFolder.open("one")
    assert one.train_documents == 40
    assert one.tokenizer.decode(one.train[:6].tolist()) == "caf\ufffd"
    assert one.tokenizer.decode(one.val.tolist()) == STORY.upper()
    options = ["--tokenizer", "one/tokenizer.json"]
    assert cpulm(monkeypatch, "tokenize", story, "val.txt", "--out", "two", *options) == 0
    two = TokenFolder.open("two")
    assert two.tokenizer.to_json() == one.tokenizer.to_json()
    assert two.meta["file_count"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["missing.txt"], 3, "missing.txt does not exist", "give a file"),
        (["story.txt", "--vocab-size", "300", "--tokenizer", "char"], 2, "has no effect", "leave it out"),
        (["story.txt", "--val-fraction", "0.1", "--val-data", "story.txt"], 2, "has no effect", "keep one"),
        (["story.txt", "--set", "train.lr=1"], 2, "train.lr=1 has no effect on tokens", "are data.*"),
        (["story.txt", "--val-fraction", "2"], 2, "--val-fraction 2: must be less than 1", ""),
        (["story.txt", "--errors", "ignore"], 2, "--errors ignore: must be one of strict, replace", ""),
        (["story.txt", "--tokenizer", "no.json"], 3, "tokenizer no.json: No such file", "bpe, byte, char"),
        (["story.txt", "--tokenizer", "bpe", "--vocab-size", "9"], 2, "bpe needs 256", "--vocab-size 257"),
    ],
)
def test_a_mistake_is_one_message_and_one_hint(
    story: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
    hint: str,
) -> None:
    assert cpulm(monkeypatch, "tokenize", *arguments, "--out", "tokens") == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert hint in shown.err
    assert shown.err.count("error:") == 1
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert [path.name for path in story.parent.iterdir()] == ["story.txt"]


def test_a_folder_with_something_in_it_is_refused(
    story: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cpulm(monkeypatch, "tokenize", story, "--out", ".") == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in story.parent.iterdir()] == ["story.txt"]


def test_the_process_ends_while_a_library_still_learns_a_vocabulary() -> None:
    """Up to Python 3.13, a thread that runs on when Python ends is ended inside of the library: an abort."""
    script = """
from types import SimpleNamespace
from cpulm.cli.main import _end
from cpulm.data import vocabulary
from cpulm.data.tokenizer import train_bpe
from cpulm.errors import StoppedError

def endless():
    while True:
        if not vocabulary:
            yield ""

try:
    corpus = SimpleNamespace(source_bytes=1)
    vocabulary._in_background(lambda _: train_bpe(endless(), 300), corpus, print, lambda: True)
except StoppedError as error:
    _end(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 75
    assert done.stderr.startswith("stopped: while sampling the text")
    assert "FATAL" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_ends_it_and_leaves_nothing(in_empty_folder: Path) -> None:
    """On text that takes longer than a moment, at a moment when the work is under way."""
    (in_empty_folder / "big.txt").write_text(
        "".join(f"{n} {n * n:x} " for n in range(2_000_000)), encoding="utf-8"
    )
    command = [sys.executable, "-m", "cpulm", "tokenize", "big.txt", "--out", "tokens"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--vocab-size", "30000"], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 75, first + rest
    assert "nothing was written" in rest
    assert [path.name for path in in_empty_folder.iterdir()] == ["big.txt"]


@pytest.mark.parametrize("when", ["reading", "tokenizing"])
def test_a_second_ctrl_c_says_that_nothing_was_written(story: Path, when: str) -> None:
    """It has no checkpoint to speak of, whatever it was doing."""

    def interrupt_twice(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == when:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    data = DataSettings(source=[str(story)], tokenizer="byte", vocab_size=None)
    with pytest.raises(AbortedError) as end:
        tokenize._make(data, Path("tokens"), vocab_size_given=False, show=interrupt_twice)
    assert end.value.message == "aborted; nothing was written"
    assert [path.name for path in story.parent.iterdir()] == ["story.txt"]


def test_torch_is_not_needed(story: Path) -> None:
    code = (
        "import sys\n"
        "sys.argv = 'cpulm tokenize story.txt --out tokens --tokenizer byte'.split()\n"
        "from cpulm.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code or 0, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 False"


def test_cached_tokens_are_listed_and_pruned(
    story: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(
        DataSettings(source=[str(story)], tokenizer="byte"), emit=lambda _: None, should_stop=lambda: False
    )
    (folder,) = (fresh_cache / "tokens").iterdir()
    assert cpulm(monkeypatch, "tokenize", "--list-cache", "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["path"], one["source"]) == (str(folder), [str(story)])
    assert cpulm(monkeypatch, "tokenize", "--prune-cache", "30d") == 0
    assert folder.is_dir()
    os.utime(folder, (0, 0))
    assert cpulm(monkeypatch, "tokenize", "--prune-cache", "30d") == 0
    assert not folder.exists()
