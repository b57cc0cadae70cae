"""Work on tokens that ends before they are complete is continued, and gives the same tokens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cpulm.data import encode_corpus, marked_text, text_decoding, unfinished
from cpulm.data.prepare import prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.unfinished import Unfinished
from cpulm.errors import StoppedError
from cpulm.events import Event, Notice
from cpulm.settings import DataSettings

ROOT = Path(__file__).parents[2]
CONTINUING = "continuing the work that was left unfinished"
STAYS = "the same command continues the work that is done"


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_corpus, "JOB_CHARACTERS", 1 << 12)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Short files, one of many chunks, one that is binary, a copy, and one with wrong bytes."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"Text {number}: " + f"word{number} and so on. " * 60 * number)
    long = "".join(f"Line {n} of a long text, é🙂 {n * n}.\n" for n in range(2500))
    (folder / "1-long.txt").write_text(long, encoding="utf-8")
    (folder / "2-binary.txt").write_bytes(b"\0" * 500)
    (folder / "2-copy.txt").write_bytes((folder / "3.txt").read_bytes())
    (folder / "3-wrong.txt").write_bytes(b"caf\xe9 " * 50)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows of which only a part counts in the loss."""
    path = tmp_path / "rows.csv"
    lines = [f"{n % 7},item {n} has {n * n} parts" for n in range(24)]
    path.write_text("\n".join(["grade,what", *lines, ""]), encoding="utf-8")
    return path


OF_TEXTS: dict[str, Any] = {"tokenizer": "bpe", "vocab_size": 300, "errors": "replace", "dedup": True}
OF_ROWS: dict[str, Any] = {
    "tokenizer": "word",
    "vocab_size": None,
    "template": "{grade} {what}",
    "loss_after": "grade",
    "where": ["grade!=3"],
    "row_weight": "grade",
}

OF_COLUMN: dict[str, Any] = {"tokenizer": "bpe", "vocab_size": 300, "field": "what", "val_fraction": 0.3}


def made(source: Path, out: Path, events: list[Event] | None = None, **settings: Any) -> TokenFolder:
    data = DataSettings(source=[str(source)], **settings)
    emit = (lambda _event: None) if events is None else events.append
    return prepare(data, emit=emit, should_stop=lambda: False, out=out)


def said(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Notice)]


class Stops:
    """Keeps the state at every moment, and ends the work after a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.kept: list[str] = []
        real = Unfinished.save

        def save(work: Unfinished, name: str, state: dict[str, Any]) -> None:
            real(work, name, state)
            self.kept.append(name)
            self.left -= 1
            if not self.left:
                raise StoppedError("in the midst", "run the command again")

        monkeypatch.setattr(Unfinished, "save", save)
        monkeypatch.setattr(unfinished, "EVERY_SECONDS", 0.0)

    def after(self, saves: int, source: Path, out: Path, **settings: Any) -> list[str] | None:
        """Make tokens up to so many states; return what was said, None if they are complete before."""
        self.left, events = saves, list[Event]()
        try:
            made(source, out, events, **settings)
        except StoppedError:
            return said(events)
        return None


@pytest.mark.parametrize("saves", [1, 4])
@pytest.mark.parametrize("kind", ["texts", "rows", "column", "weights"])
def test_stopped_at_any_moment_and_continued_the_tokens_are_the_same(
    texts: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int, kind: str
) -> None:
    source, settings = {"rows": (rows, OF_ROWS), "column": (rows, OF_COLUMN)}.get(kind, (texts, OF_TEXTS))
    if kind == "column":
        monkeypatch.setattr(text_decoding, "_CHUNK_BYTES", 100)
    settings = {**settings, "weights": [1.4]} if kind == "weights" else settings
    whole = made(source, tmp_path / "whole", **settings)
    stops, out, ended = Stops(monkeypatch), tmp_path / "parts", 0
    while (messages := stops.after(saves, source, out, **settings)) is not None:
        assert (CONTINUING in messages) == (ended > 0)
        assert messages[-1] == STAYS
        ended += 1
    assert ended > 1
    assert {"files", "scan", "tokenizer", "encoded"} == set(stops.kept)
    assert TokenFolder.open(out).meta == whole.meta
    TokenFolder.open(out).verify()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.path.iterdir())


def test_nothing_is_encoded_twice(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = 0
    real = marked_text.encoder_of_jobs

    def counting(tokenizer: Any) -> Any:
        encode = real(tokenizer)

        def counted(data: bytes) -> Any:
            nonlocal encoded
            encoded += len(data)
            return encode(data)

        return counted

    monkeypatch.setattr(encode_corpus, "encoder_of_jobs", counting)
    made(texts, tmp_path / "whole", **OF_TEXTS)
    once, encoded = encoded, 0
    stops = Stops(monkeypatch)
    while stops.after(4, texts, tmp_path / "parts", **OF_TEXTS) is not None:
        pass
    assert encoded == once


@pytest.mark.parametrize("change", ["tokenizer", "text", "settings"])
def test_no_part_of_other_work_is_taken(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    settings = {**OF_TEXTS}
    assert Stops(monkeypatch).after(14, texts, tmp_path / "tokens", **settings) is not None
    monkeypatch.undo()
    if change == "text":
        (texts / "3.txt").write_text("Another text. " * 700)
    elif change == "tokenizer":
        settings["tokenizer"] = "byte"
    else:
        settings["val_fraction"] = 0.2
    events: list[Event] = []
    folder = made(texts, tmp_path / "tokens", events, **settings)
    assert CONTINUING not in said(events)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert folder.meta == made(texts, tmp_path / "again", **settings).meta


def test_complete_tokens_leave_the_work_of_a_running_process(texts: Path, tmp_path: Path) -> None:
    with Unfinished(tmp_path / "tokens", "0123456789abcdef") as other:
        other.save("scan", {"by": "the other"})
        made(texts, tmp_path / "tokens", **OF_TEXTS)
        assert other.load("scan") == {"by": "the other"}


@pytest.mark.parametrize("how", ["shorter", "changed"])
def test_damaged_tokens_are_made_again(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    assert Stops(monkeypatch).after(14, texts, tmp_path / "tokens", **OF_TEXTS) is not None
    monkeypatch.undo()
    (work,) = tmp_path.glob(".tokens.*.tmp")
    written = (work / "train.bin").read_bytes()
    assert len(written) > 1000
    (work / "train.bin").write_bytes(written[:-10] if how == "shorter" else b"\0\0" + written[2:])
    folder = made(texts, tmp_path / "tokens", **OF_TEXTS)
    assert folder.meta == made(texts, tmp_path / "again", **OF_TEXTS).meta


@pytest.mark.parametrize("name", ["files", "scan", "tokenizer", "encoded"])
@pytest.mark.parametrize("how", ["cut short", "another text"])
def test_a_damaged_state_counts_as_none(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    assert Stops(monkeypatch).after(14, texts, tmp_path / "tokens", **OF_TEXTS) is not None
    monkeypatch.undo()
    (state,) = tmp_path.glob(f".tokens.*.tmp/unfinished-{name}.json")
    digest, text = state.read_text().split("\n")
    state.write_text(f"{digest}\n{text[:-9]}" if how == "cut short" else f'{digest}\n{{"a": 1}}')
    folder = made(texts, tmp_path / "tokens", **OF_TEXTS)
    assert folder.meta == made(texts, tmp_path / "again", **OF_TEXTS).meta


def test_two_at_once_do_not_share_their_work(texts: Path, tmp_path: Path) -> None:
    made(texts, tmp_path / "whole", **OF_TEXTS)
    with Unfinished(tmp_path / "tokens", "the same key") as first:
        first.save("scan", {"by": "the first"})
        with Unfinished(tmp_path / "tokens", "the same key") as second:
            second.save("scan", {"by": "the second"})
            assert (second.kept, second.load("scan")) == (False, None)
            assert second.begin() != first.begin()
        assert first.load("scan") == {"by": "the first"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


_KILLED = """
import os, signal
from cpulm.data.unfinished import Unfinished
kept, save = [], Unfinished.save
def killed(work, name, state):
    save(work, name, state)
    kept.append(name)
    if kept.count("encoded") == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Unfinished.save = killed
"""
_RUN = """
import sys
from cpulm.data import unfinished
from cpulm.cli.main import main
unfinished.EVERY_SECONDS = 0.0
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_process_that_is_killed_is_continued(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} {n * n:x} {n % 977:b} " for n in range(20_000)))

    def run(program: str) -> subprocess.CompletedProcess[str]:
        options = ["tokenize", str(text), "--out", str(tmp_path / "tokens"), "--tokenizer", "byte", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program, *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert run(_KILLED + _RUN).returncode == -signal.SIGKILL
    assert not (tmp_path / "tokens").exists()
    done = run(_RUN)
    assert CONTINUING in done.stderr
    whole = made(text, tmp_path / "whole", tokenizer="byte")
    assert json.loads(done.stdout)["digest"] == whole.digest
