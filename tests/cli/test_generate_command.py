"""``cpulm generate`` in a terminal, in pipes and in scripts."""

from __future__ import annotations

import io
import json
import os
import select
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from forked import Forked

from cpulm.checkpoints.checkpoint import Checkpoint, save
from cpulm.cli.main import main
from cpulm.data.tokenizer import byte_tokenizer, char_tokenizer
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings, Settings


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
    """A model that says the letters of the alphabet in turn, at temperature 0 without a fault."""
    return make_checkpoint(tmp_path_factory.mktemp("runs") / "best.pt")


def make_checkpoint(path: Path, alphabet: str | None = None) -> Path:
    tokenizer = byte_tokenizer() if alphabet is None else char_tokenizer(alphabet)
    settings = ModelSettings(
        n_layer=1,
        n_head=1,
        n_embd=tokenizer.vocab_size + tokenizer.vocab_size % 2,
        block_size=32,
        tie_embeddings=False,
    )
    model = Transformer(settings, tokenizer.vocab_size)
    # The blocks stay zero; the embedding is one-hot, and the head likes the byte after the one it sees,
    # after the last byte the first, and never the end of the text.
    one_hot = torch.eye(tokenizer.vocab_size, settings.n_embd)
    head = torch.empty(one_hot.shape).uniform_(0, 0.1, generator=torch.Generator().manual_seed(0))
    head[:-1] += 0.4 * one_hot[:-1].roll(1, 0)
    head[-1] = -10
    with torch.no_grad():
        model.wte.weight.copy_(one_hot)
        assert model.lm_head is not None
        model.lm_head.weight.copy_(head)
    save(
        Checkpoint(
            settings=Settings(model=settings),
            tokenizer_json=tokenizer.to_json(),
            vocab_size=tokenizer.vocab_size,
            starts_documents=False,
            model_state=model.state_dict(),
        ),
        path,
    )
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path) -> Run:
    """Run ``cpulm generate RUN ARGUMENTS`` in this process."""

    def call(*arguments: str, stdin: bytes = b"", at: Path = checkpoint) -> Done:
        named = [] if "runs/tiny-1" in arguments else [str(at)]
        command = ["cpulm", "generate", *named, "--threads", "1", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code, *capsys.readouterr())

    return call


GREEDY = ("--temperature", "0", "--max-new-tokens", "5")


def test_prompt_and_text_go_to_stdout_and_the_figures_to_stderr(run: Run) -> None:
    done = run("--prompt", "abc", *GREEDY)
    assert done.code == 0
    assert done.out == "abcdefgh\n"
    assert "5 tokens" in done.err
    assert "tok/s" in done.err
    assert "seed" in done.err


def test_no_echo_leaves_the_text_alone(run: Run) -> None:
    assert run("--prompt", "abc", "--no-echo", *GREEDY).out == "defgh\n"


def test_the_folder_of_a_run_names_its_best_checkpoint(run: Run, checkpoint: Path) -> None:
    assert run("--prompt", "k", *GREEDY, at=checkpoint.parent).out == "klmnop\n"


def test_the_prompt_comes_from_a_pipe_or_a_file_without_the_last_line_end(run: Run, tmp_path: Path) -> None:
    assert run(*GREEDY, stdin=b"xy\nabc\n").out == "xy\nabcdefgh\n"
    (tmp_path / "prompt.txt").write_bytes(b"q\r\nABC\r\n")
    assert run("--prompt-file", str(tmp_path / "prompt.txt"), *GREEDY).out == "q\r\nABCDEFGH\n"
    assert run("--prompt-file", "-", *GREEDY, stdin=b"r").out == "rstuvw\n"


def test_an_empty_prompt_begins_after_a_line_end(run: Run) -> None:
    assert run("--max-new-tokens", "2", "--temperature", "0").out == "\x0b\x0c\n"


def test_the_note_says_in_which_precision_it_wrote(run: Run, tmp_path: Path) -> None:
    wide = make_checkpoint(
        tmp_path / "best.pt", "abcdefghijklmnopqrstuvwxyzABCDE"
    )  # 32 wide, with the end of text
    for precision, said in (("auto", "int8"), ("int8", "int8"), ("fp32", "fp32")):
        done = run("--prompt", "abc", *GREEDY, "--precision", precision, at=wide)
        assert done.out == "abcdefgh\n"
        assert f"tok/s, {said}, seed" in done.err
    odd = run("--prompt", "abc", *GREEDY, "--precision", "int8")
    assert "it writes in fp32" in odd.err
    assert "tok/s, fp32, seed" in odd.err
    refused = run("--prompt", "abc", "--precision", "bf16")
    assert refused.code == 2
    assert "for training" in refused.err


def test_the_same_seed_gives_the_same_text_and_another_seed_another(run: Run) -> None:
    arguments = ("--prompt", "a", "--temperature", "2", "--top-k", "0", "--max-new-tokens", "40", "--seed")
    first = run(*arguments, "5")
    assert run(*arguments, "5").out == first.out != run(*arguments, "6").out
    assert "seed 5" in first.err


def test_the_seed_that_is_said_gives_the_text_again(run: Run) -> None:
    arguments = ("--prompt", "a", "--temperature", "2", "--max-new-tokens", "40")
    first = run(*arguments)
    seed = first.err.split("seed ")[1].split()[0]
    assert run(*arguments, "--seed", seed).out == first.out


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "0.3"),
        ("--top-k", "2"),
        ("--top-p", "0.3"),
        ("--min-p", "0.9"),
        ("--repetition-penalty", "5"),
    ],
)
def test_every_sampling_option_has_its_effect(run: Run, option: str, value: str) -> None:
    common = ("--prompt", "ba", "--seed", "3", "--max-new-tokens", "60")
    assert run(*common, option, value).out != run(*common).out


def test_samples_are_apart_and_the_first_is_as_if_alone(run: Run) -> None:
    arguments = ("--prompt", "a", "--seed", "3", "--max-new-tokens", "20", "--temperature", "1.5")
    texts = run(*arguments, "--num-samples", "3").out.removesuffix("\n").split("\n---------------\n")
    assert len(texts) == len(set(texts)) == 3
    assert run(*arguments).out == texts[0] + "\n"


@pytest.mark.parametrize(
    ("stop", "expected"), [(("ef",), "abcd"), (("fg", "g"), "abcde"), (("zz",), "abcdefgh")]
)
def test_the_text_ends_before_a_stop_string(run: Run, stop: tuple[str, ...], expected: str) -> None:
    flags = [part for word in stop for part in ("--stop", word)]
    assert run("--prompt", "abc", *GREEDY, *flags).out == expected + "\n"


def test_a_stop_string_may_be_a_written_line_end(run: Run) -> None:
    done = run("--prompt", "\x07", "--temperature", "0", "--stop", "\\n", "--no-echo")
    assert done.out == "\x08\t\n"
    assert "stop string" in done.err


def test_json_holds_every_text_with_its_figures(run: Run) -> None:
    arguments = (
        "--prompt",
        "abc",
        "--seed",
        "4",
        "--num-samples",
        "2",
        "--max-new-tokens",
        "5",
        "--stop",
        "f",
    )
    done = run(*arguments, "--temperature", "0.01", "--json")
    records = json.loads(done.out)
    assert [record["sample"] for record in records] == [0, 1]
    for record in records:
        assert record["tokens_per_second"] > 0
        del record["sample"], record["tokens_per_second"]
        assert record == {"prompt": "abc", "text": "de", "tokens": 3, "seed": 4, "stop_reason": "stop"}


def test_interactive_continues_line_by_line_until_an_empty_one(run: Run) -> None:
    done = run("--interactive", *GREEDY, "--seed", "7", stdin=b"abc\nKLM\n\nnever\n")
    assert done.code == 0
    assert done.out == "abcdefgh\nKLMNOPQR\n"
    assert "seed 7" in done.err
    assert "seed 8" in done.err


def test_interactive_obeys_commands_and_continues_no_other_slash(run: Run) -> None:
    settings = b"/set top_k 0\n/set heat 3\n/set temperature -1\n"
    lines = b"/help\n/set max_new_tokens 2\nabc\n" + settings + b"/bye\nnever\n"
    done = run("--interactive", *GREEDY, stdin=lines)
    assert (done.code, done.out) == (0, "abcde\n")
    assert "/set temperature 0.7" in done.err
    assert "/set has no setting heat\n hint: settings: temperature" in done.err
    assert "top_k" not in done.err.replace("top_k, top_p", "")
    assert "temperature = -1 must be a finite number, 0 or more" in done.err


def test_interactive_survives_a_prompt_that_cannot_be(run: Run, tmp_path: Path) -> None:
    letters = make_checkpoint(tmp_path / "letters.pt", "abcdefghijkl")
    done = run("--interactive", *GREEDY, stdin="aé\nabc\n".encode(), at=letters)
    assert done.out == "abcdefgh\n"
    assert "'é'" in done.err


def test_at_temperature_0_options_without_effect_are_named(run: Run) -> None:
    done = run("--prompt", "a", *GREEDY, "--top-k", "3", "--seed", "1", "--num-samples", "2")
    assert "without effect: --top-k, --seed" in done.err
    assert "all samples will be the same" in done.err
    assert "no effect" not in run("--prompt", "a", *GREEDY).err


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("--temperature", "-1"), 2, "temperature = -1"),
        (("--top-p", "1.5"), 2, "top_p = 1.5"),
        (("--min-p", "2"), 2, "min_p = 2"),
        (("--repetition-penalty", "0"), 2, "repetition_penalty = 0"),
        (("--stop", ""), 2, "stop string is empty"),
        (("--prompt", "a", "--prompt-file", "b"), 2, "--prompt-file"),
        (("--interactive", "--json"), 2, "--interactive"),
        (("--device", "abacus"), 2, "--device abacus"),
        (("--threads", "100000"), 2, "--threads 100000"),
        (("--prompt-file", "absent.txt"), 3, "absent.txt"),
        (("--prompt", "a\udcff"), 3, "surrogate"),
    ],
)
def test_a_mistake_is_one_message_one_hint_and_its_exit_code(
    run: Run, arguments: tuple[str, ...], code: int, named: str
) -> None:
    done = run(*arguments)
    assert done.code == code
    assert named in done.err
    assert done.out == ""
    assert "Traceback" not in done.err


def test_bytes_that_are_no_utf8_are_named_with_their_place(run: Run) -> None:
    done = run(stdin=b"ab\xff")
    assert done.code == 3
    assert "0xff at offset 2" in done.err


def test_a_file_that_is_not_a_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path / "notes.txt", tmp_path / "absent.pt", tmp_path):
        assert run("--prompt", "a", at=path).code == 3


# The guide


def documented_commands() -> list[str]:
    guide = Path(__file__).parents[2] / "docs" / "generate.md"
    blocks = guide.read_text(encoding="utf-8").split("```bash\n")[1:]
    return [line for block in blocks for line in block.partition("```")[0].splitlines()]


@pytest.mark.parametrize("line", documented_commands())
def test_the_commands_of_the_guide_work(run: Run, checkpoint: Path, in_empty_folder: Path, line: str) -> None:
    (in_empty_folder / "runs" / "tiny-1").mkdir(parents=True)
    shutil.copy(checkpoint, in_empty_folder / "runs" / "tiny-1" / "best.pt")
    (in_empty_folder / "prompt.txt").write_text("import ", encoding="utf-8")
    piped, _, command = line.rpartition(" | ")
    stdin = "".join(shlex.split(piped)[1:]) + "\n" if piped else ""
    program, subcommand, *arguments = shlex.split(command)
    assert (program, subcommand) == ("cpulm", "generate")
    done = run(*arguments, stdin=stdin.encode())
    assert done.code == 0, done.err
    assert done.out or "--interactive" in arguments


# In a process of its own


@pytest.mark.skipif(os.name == "nt", reason="POSIX streams")
def test_a_reader_that_leaves_is_not_an_error(checkpoint: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    arguments = ("--prompt", "a", "--max-new-tokens", "100000", "--threads", "1")
    process = Forked(
        tmp_path,
        "generate",
        str(checkpoint),
        *arguments,
        stdout=tmp_path / "pipe",
        stderr=tmp_path / "said",
    )
    with (tmp_path / "pipe").open("rb") as pipe:
        assert pipe.read(3).startswith(b"a")
    assert process.wait() == 0
    assert (tmp_path / "said").read_bytes() == b""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals of this kind")
def test_ctrl_c_stops_the_text_and_ctrl_d_the_program(checkpoint: Path, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    arguments = ("--interactive", "--max-new-tokens", "1000000", "--threads", "1")
    name = os.ttyname(theirs)
    process = Forked(tmp_path, "generate", str(checkpoint), *arguments, stdin=name, stdout=name, stderr=name)
    seen = b""

    def wait_for(text: bytes, more: int = 0) -> None:
        nonlocal seen
        end = time.monotonic() + 100
        while text not in seen or len(seen.partition(text)[2]) < more:
            readable, _, _ = select.select([ours], [], [], max(0.0, end - time.monotonic()))
            assert readable, seen
            seen += os.read(ours, 4096)
        seen = seen.partition(text)[2]

    try:
        wait_for(b"> ")
        os.write(ours, b"abc\n")
        wait_for(b"abc\r\n", more=200)  # the line is echoed, the text is coming
        os.kill(process.pid, signal.SIGINT)
        wait_for(b"tok/s")
        wait_for(b"> ")
        os.write(ours, b"\x04")
        assert process.wait() == 0
    except BaseException:
        os.kill(process.pid, signal.SIGKILL)
        raise
    finally:
        os.close(theirs)
        os.close(ours)
