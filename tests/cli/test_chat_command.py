"""``cpulm chat`` in a pipe and at a terminal."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from chat_models import answering_checkpoint

from cpulm.cli import chat_talk
from cpulm.cli.main import main


class Done(NamedTuple):
    code: int | str | None
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering_checkpoint(tmp_path_factory.mktemp("runs") / "talk" / "best.pt")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path) -> Run:
    """Run ``cpulm chat RUN ARGUMENTS`` in this process."""

    def call(*arguments: str, stdin: str = "", at: Path = checkpoint.parent) -> Done:
        given = ["cpulm", "chat", str(at), "--threads", "1", "--temperature", "0", *arguments]
        monkeypatch.setattr(sys, "argv", given)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code, *capsys.readouterr())

    return call


def test_lines_go_in_and_answers_come_out(run: Run) -> None:
    assert run(stdin="hi\n\nwhat?\n/bye\nnever\n") == Done(0, "abcde\nabcde\n", "")


def test_commands_are_obeyed_and_others_explained(run: Run) -> None:
    done = run(stdin="/set max_new_tokens 2\nhi\n/set max_new_tokens 20\n//x\n/what\n/set heat 1\n")
    assert (done.code, done.out) == (0, "ab\nabcde\n")
    for part in (
        "the answer is longer: /set max_new_tokens",
        "/clear",
        "/system TEXT",
        "/set temperature 0.7",
        "settings: temp",
    ):
        assert part in done.err


def test_what_does_not_fit_is_said_once_and_the_talk_goes_on(run: Run) -> None:
    done = run(
        "--max-new-tokens", "8", stdin="hello\n" * 6 + "/clear\n" + "hello\n" * 6 + f"{'x' * 80}\nhi\n"
    )
    assert (done.code, done.out) == (0, "abcde\n" * 13)
    assert done.err.count("the context of 64 tokens is full: the model forgets the oldest messages") == 2
    assert done.err.count("the message is too long: 8") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("--temperature", "-1"), 2, "temperature = -1"),
        (("--max-new-tokens", "0"), 2, "--max-new-tokens 0"),
        (("--system", "x" * 100), 3, "the message is too long"),
    ],
)
def test_a_mistake_is_one_message(run: Run, arguments: tuple[str, ...], code: int, named: str) -> None:
    done = run(*arguments, stdin="hi\n")
    assert (done.code, done.out) == (code, "")
    assert named in done.err
    assert "Traceback" not in done.err


def a_talk(checkpoint: Path) -> chat_talk.Talk:
    return chat_talk.begin(checkpoint, {"runtime.threads": 1}, {"temperature": 0}, 20, 0)


def test_an_answer_ends_with_the_context(tmp_path: Path) -> None:
    talk = a_talk(answering_checkpoint(tmp_path / "best.pt", answer="ab", endless=True))
    talk.max_new_tokens = 1000
    said = "".join(talk.answer("hi"))
    assert (len(said), talk.ending) == (64 - 6 + 1, "context")
    talk.max_new_tokens = 5
    talk.clear()
    assert ("".join(talk.answer("hi")), talk.ending) == ("ababa", "length")


def test_a_talk_remembers_what_was_said(checkpoint: Path) -> None:
    talk = a_talk(checkpoint)
    talk.set_system("Be brief.")
    assert list(talk.answer("hi")) == list("abcde")
    assert talk.ending == "end_of_text"
    wanted = [("system", "Be brief."), ("user", "hi"), ("assistant", "abcde")]
    assert talk.messages == wanted
    answer = talk.answer("more")
    next(answer)
    answer.close()
    assert (talk.messages, talk.ending) == ([*wanted, ("user", "more"), ("assistant", "a")], "interrupted")
    talk.clear()
    assert talk.messages == wanted[:1]
    talk.set_system("")
    assert talk.messages == []


def test_each_sampling_option_reaches_the_answer(run: Run) -> None:
    hot = ("--temperature", "50", "--top-k", "0", "--max-new-tokens", "30")
    first = run(*hot, "--seed", "1", stdin="hi\n").out
    assert first == run(*hot, "--seed", "1", stdin="hi\n").out != run(*hot, "--seed", "2", stdin="hi\n").out
    for more in (("--top-k", "1"), ("--top-p", "0.001"), ("--min-p", "1")):
        assert run(*hot, *more, stdin="hi\n").out == "abcde\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals of this kind")
def test_ctrl_c_ends_the_answer_and_not_the_talk(tmp_path: Path) -> None:
    import pty

    endless = answering_checkpoint(tmp_path / "best.pt", block_size=20_000, answer="ab", endless=True)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cpulm", "chat", str(endless), "--threads", "1", "--temperature", "0"]
    command += ["--max-new-tokens", "20000"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 100
        while text not in seen:
            readable, _, _ = select.select([ours], [], [], max(0.0, end - time.monotonic()))
            assert readable, seen
            seen += os.read(ours, 4096)
        seen = seen.partition(text)[2]

    try:
        wait_for(b"> ")
        os.write(ours, b"hi\n")
        wait_for(b"ababab" * 20)
        process.send_signal(signal.SIGINT)
        wait_for(b"> ")
        os.write(ours, b"\x04")
        assert process.wait(timeout=100) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
