"""``cpulm evaluate`` in a terminal and in scripts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from cpulm.cli.main import main

SMALL = {
    "model.n_layer": "1",
    "model.n_head": "2",
    "model.n_embd": "16",
    "model.block_size": "16",
    "train.micro_batch_size": "4",
    "train.steps": "6",
    "eval.every": "6",
    "eval.batches": "null",
    "sample.max_new_tokens": "0",
    "runtime.compile": "off",
    "log.report": "false",
    "runtime.threads": "1",
}
TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(400))


class Done(NamedTuple):
    code: object
    out: str
    err: str


Run = Callable[..., Done]


def cpulm(*arguments: str) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cpulm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on one text, the second one with another tokenizer."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "text.txt").write_text(TEXT)
    threads = torch.get_num_threads()
    sets = [f"--set={key}={value}" for key, value in SMALL.items()]
    for name, tokenizer in (("bytes", "byte"), ("characters", "char")):
        arguments = ["--data", str(folder / "text.txt"), "--out", str(folder / name), "--headless"]
        named = [f"--set=data.tokenizer={tokenizer}", "--set=data.vocab_size=null"]
        assert cpulm("train", "--preset", "tiny", *sets, *named, *arguments) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run ``cpulm evaluate ARGUMENTS`` in this process, in the folder of the two runs."""
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()

    def call(*arguments: str) -> Done:
        return Done(cpulm("evaluate", "--threads", "1", *arguments), *capsys.readouterr())

    yield call
    torch.set_num_threads(threads)


def checkpoints(done: Done) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)["checkpoints"]
    return found


def test_without_a_text_the_runs_own_validation_text_is_taken(run: Run, folder: Path) -> None:
    done = run("--checkpoint", "bytes")
    assert done.code == 0
    lines = (folder / "bytes" / "metrics.jsonl").read_text().splitlines()
    said = next(record for record in map(json.loads, lines) if record["event"] == "validated")
    assert f"loss              {said['loss']:.4f} ±" in done.out
    assert "the validation split of bytes" in done.out
    assert "adjacent windows of 16 tokens" in done.out
    assert max(map(len, done.out.splitlines())) < 200


def test_json_holds_everything_with_its_protocol(run: Run) -> None:
    arguments = (
        "--checkpoint",
        "bytes",
        "text.txt",
        "--stride",
        "4",
        "--each-document",
        "--max-tokens",
        "99",
    )
    (found,) = checkpoints(run(*arguments, "--json"))
    assert found["protocol"] == {"block_size": 16, "stride": 4, "apart": True, "first_token": None}
    text = found["text"]
    assert text["tokens"] == 99
    assert text["unit"] == "blocks"
    for name in ("loss", "perplexity", "bits_per_byte", "accuracy"):
        assert text[name]["value"] > 0
        assert text[name]["standard_error"] > 0
    assert "sums" not in text


def test_of_one_letter_only_the_end_is_predicted(run: Run, folder: Path) -> None:
    (folder / "one.txt").write_text("7")
    arguments = ("--checkpoint", "bytes", "one.txt", "--json")
    (found,) = checkpoints(run(*arguments))
    assert (found["text"]["tokens"], found["text"]["scored"], found["text"]["text_bytes"]) == (2, 1, 1)
    assert found["text"]["bits_per_byte"]["standard_error"] is None
    both = checkpoints(run("--checkpoint", "bytes", *arguments))
    assert both[1]["behind"] == {"value": 0.0, "standard_error": None}


def test_the_compiled_kernels_give_the_same_figures_as_torch(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = checkpoints(run("--checkpoint", "bytes", "text.txt", "--json"))
    monkeypatch.setenv("CPULM_RUNTIME__KERNELS", "off")
    (plain,) = checkpoints(run("--checkpoint", "bytes", "text.txt", "--json"))
    assert found["text"]["loss"]["value"] == pytest.approx(plain["text"]["loss"]["value"], rel=1e-5)


def test_of_two_tokenizers_bits_per_byte_decide(run: Run) -> None:
    done = run("--checkpoint", "bytes", "--checkpoint", "characters", "text.txt")
    assert done.code == 0
    assert "compare bits per byte" in done.err
    head = next(line for line in done.out.splitlines() if line.startswith("checkpoint"))
    assert "bits per byte" in head
    assert "loss" not in head
    found = checkpoints(run("--checkpoint", "bytes", "--checkpoint", "characters", "text.txt", "--json"))
    bits = [one["text"]["bits_per_byte"]["value"] for one in found]
    assert bits == sorted(bits)


def test_checkpoints_of_one_tokenizer_are_put_side_by_side_with_their_difference(
    run: Run, folder: Path
) -> None:
    from cpulm.checkpoints import checkpoint as files

    worse = files.load(folder / "bytes" / "best.pt")
    worse.model_state["wte.weight"] *= -1
    files.save(worse, folder / "worse.pt")
    arguments = ("--checkpoint", "worse.pt", "--checkpoint", "bytes", "text.txt")
    best, other = checkpoints(run(*arguments, "--json"))
    assert (best["checkpoint"], other["checkpoint"]) == ("bytes", "worse.pt")
    assert best["behind"] is None
    gap = other["text"]["bits_per_byte"]["value"] - best["text"]["bits_per_byte"]["value"]
    assert other["behind"]["value"] == pytest.approx(gap)
    done = run(*arguments)
    assert f"+{gap:.4f} ±" in done.out
    assert "best first" in done.err


def test_samples_are_judged_beside_validation_text(run: Run) -> None:
    arguments = ("--checkpoint", "bytes", "--num-samples", "3", "--max-new-tokens", "40", "--json")
    (found,) = checkpoints(run(*arguments))
    samples = found["samples"]
    assert found["text"] is None
    assert len(samples["texts"]) == samples["samples"] == 3
    # The text is one pattern over and over: what it leads up to stands in its training part as well.
    assert samples["reference_memorized"]["found"]["8"] > 0
    assert 0 <= samples["variety"]["distinct"]["1"] <= 1
    shown = run("--checkpoint", "bytes", "--num-samples", "3", "--max-new-tokens", "40")
    assert "distinct-2" in shown.out
    assert "(validation text: " in shown.out


def test_samples_of_a_checkpoint_without_its_data_are_judged_as_far_as_can_be(
    run: Run, folder: Path, fresh_cache: Path, tmp_path: Path
) -> None:
    alone = away(folder, tmp_path)
    done = run("--checkpoint", str(alone), "--samples", "2", "--max-new-tokens", "9")
    assert done.code == 0
    assert "unknown without the training data" in done.out
    done = run("--checkpoint", str(alone))
    assert done.code == 3
    assert "validation text" in done.err
    assert f"cpulm evaluate {alone} --data TEXT" in " ".join(done.err.split())


def away(folder: Path, target: Path) -> Path:
    """A checkpoint whose token folder and text are both gone."""
    from cpulm.checkpoints import checkpoint as files

    loaded = files.load(folder / "bytes" / "best.pt")
    loaded.data["path"] = str(target / "gone")
    data = loaded.settings.data.model_copy(update={"source": [str(target / "gone.txt")]})
    loaded.settings = loaded.settings.model_copy(update={"data": data})
    files.save(loaded, target / "alone.pt")
    return target / "alone.pt"


def test_multiple_choice_alone_and_beside_a_text(run: Run, folder: Path) -> None:
    question = {"question": "7 times 7 is", "choices": ["49.", "50."], "answer": "49."}
    (folder / "q.jsonl").write_text(json.dumps(question) + "\n")
    (found,) = checkpoints(run("--checkpoint", "bytes", "--choices", "q.jsonl", "--json"))
    assert found["text"] is None
    assert found["choices"]["chance"] == 0.5
    (found,) = checkpoints(run("--checkpoint", "bytes", "text.txt", "--choices", "q.jsonl", "--json"))
    assert found["text"]["scored"] > 0
    assert "guessing gets 50.0%" in run("--checkpoint", "bytes", "--choices", "q.jsonl").out


def test_a_token_folder_counts_by_its_validation_split(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "tokens", ignore_errors=True)
    arguments = ["text.txt", "--tokenizer", "byte", "--out", str(folder / "tokens"), "--headless"]
    assert cpulm("tokenize", *arguments) == 0
    capsys.readouterr()
    own, given = (
        checkpoints(run("--checkpoint", "bytes", *source, "--json"))[0]["text"]["loss"]
        for source in ((), ("tokens",))
    )
    assert own == given
    done = run("--checkpoint", "characters", "tokens")
    assert done.code == 3
    assert "different tokenizer" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ((), 2, "RUN is missing"),
        (("--checkpoint", "bytes", "--stride", "17"), 2, "--stride 17"),
        (("--checkpoint", "bytes", "--stride", "0"), 2, "--stride 0"),
        (("--checkpoint", "bytes", "--top-k", "3"), 2, "--num-samples"),
        (("--checkpoint", "bytes", "--field", "body"), 2, "--field has no effect without --data"),
        (("--checkpoint", "bytes", "--precision", "int8", "text.txt"), 2, "--precision int8"),
        (("--checkpoint", "bytes", "--samples", "2", "--stride", "4"), 2, "--stride"),
        (("--checkpoint", "bytes", "--samples", "2", "--temperature", "-1"), 2, "temperature"),
        (("--checkpoint", "bytes", "absent.txt"), 3, "absent.txt"),
        (("--checkpoint", "absent.pt", "text.txt"), 3, "absent.pt"),
        (("--checkpoint", "bytes", "--checkpoint", "absent.pt", "text.txt"), 3, "absent.pt"),
        (("--checkpoint", "bytes", "empty.txt"), 3, "no token of text"),
        (("--checkpoint", "bytes", "hollow.jsonl"), 3, "no token of text"),
        (("--checkpoint", "characters", "strange.txt"), 3, "'ß'"),
        (("--checkpoint", "bytes", "broken.txt"), 3, "offset 2"),
        (("--checkpoint", "bytes", "--choices", "empty.txt"), 3, "no questions"),
    ],
)
def test_a_mistake_is_one_message_one_hint_and_its_exit_code(
    run: Run, folder: Path, arguments: tuple[str, ...], code: int, named: str
) -> None:
    (folder / "empty.txt").write_text("")
    (folder / "hollow.jsonl").write_text('{"text": ""}\n' * 3)
    (folder / "strange.txt").write_text("7 times ß")
    (folder / "broken.txt").write_bytes(b"ab\xff")
    done = run(*arguments)
    assert done.code == code, done.err
    assert named in done.err
    assert "hint:" in done.err
    assert done.out == ""
    assert "Traceback" not in done.err


def test_a_text_is_read_as_that_of_the_run_was_unless_options_say_otherwise(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = "n,square\n" + "".join(f'{n},"[{n * n}]"\n' for n in range(300))
    (folder / "squares.csv").write_text(table)
    sets = [f"--set={key}={value}" for key, value in {**SMALL, "train.steps": "1"}.items()]
    reading = ["--template", r"{n}: {square|list}\n", "--where", "n>9", "--tokenizer", "byte"]
    source = ["squares.csv", "--out", "rows", "--headless", "--set=data.vocab_size=null"]
    assert cpulm("train", *source, "--preset", "tiny", *sets, *reading) == 0
    capsys.readouterr()
    text = "".join(f"{n}: {n * n}\n" for n in range(10, 300))
    scored = checkpoints(run("rows", "--data", "squares.csv", "--json"))[0]["text"]
    assert scored["text_bytes"] == len(text)
    other = ["--template", "{n} = {square}", "--where", "n>=10", "--json"]
    scored = checkpoints(run("rows", "--data", "squares.csv", *other))[0]["text"]
    assert scored["text_bytes"] == len(text) + 290 * (len(" = []") - len(": \n"))
    (folder / "plain.txt").write_text(text)
    assert checkpoints(run("rows", "--data", "plain.txt", "--json"))[0]["text"]["text_bytes"] == len(text)
    done = run("rows", "--data", "plain.txt", "--template", "{n}")
    assert done.code == 2
    assert "--template" in done.err
