"""Bits per byte of a tokenizer that loses text: marked wherever they are shown, and last in every order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from command_line import cpulm
from recorded_runs import validated

from cpulm.ui.page.charts import charts_for
from cpulm.ui.tensorboard import tensorboard_listener

SETTINGS = """
model: {n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {source: rhyme.txt}
train: {micro_batch_size: 4, steps: 4, warmup_steps: 1}
eval: {every: 4}
sample: {max_new_tokens: 0}
log: {report: false}
runtime: {threads: 1, compile: "off", precision: fp32}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: ``words``, with a vocabulary of one word, and ``bytes``."""
    path = tmp_path_factory.mktemp("lossy")
    (path / "rhyme.txt").write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    (path / "small.yaml").write_text(SETTINGS)
    for name, kind in (("words", ("word", "3")), ("bytes", ("byte", "null"))):
        data = ("--tokenizer", kind[0], "--set", f"data.vocab_size={kind[1]}")
        done = cpulm(path, "train", "--config", "small.yaml", *data, "--out", f"runs/{name}", "--headless")
        assert done.returncode == 0, done.stderr
        assert ("not comparable: the tokenizer loses" in done.stderr) is (name == "words")
    return path


def test_tokenize_says_how_much_is_lost(folder: Path) -> None:
    done = cpulm(
        folder, "tokenize", "rhyme.txt", "--tokenizer", "word", "--vocab-size", "3", "--out", "tokens"
    )
    assert "warning: the tokenizer loses at least 7" in done.stderr
    done = cpulm(folder, "tokenize", "rhyme.txt", "--tokenizer", "byte", "--out", "more")
    assert "loses" not in done.stderr


def test_runs_marks_the_figure(folder: Path) -> None:
    lines = cpulm(folder, "runs").stdout.splitlines()
    assert ["not comparable" in line for line in lines if "words" in line] == [True]
    assert ["not comparable" in line for line in lines if "bytes" in line] == [False]


def test_analyze_marks_it_and_ranks_it_last(folder: Path) -> None:
    assert "not comparable: the tokenizer loses" in cpulm(folder, "analyze", "runs/words").stdout
    compared = cpulm(folder, "analyze", "runs/words", "runs/bytes").stdout
    assert "not comparable" in compared
    assert compared.index("bytes") < compared.index("words")


def test_analyze_model_marks_it_on_both_kinds_of_text(folder: Path) -> None:
    for text in ((), ("--data", "rhyme.txt")):
        done = cpulm(folder, "analyze", "--model", "runs/words", *text)
        assert "bits per byte (not comparable: the tokenizer loses 7" in done.stdout, done.stderr


def test_pages_and_pictures_mark_the_chart(folder: Path) -> None:
    assert [chart.unit for chart in charts_for(0.0) if chart.name == "bits_per_byte"] == ["bits per byte"]
    done = cpulm(folder, "analyze", "runs/words", "--html", "page.html")
    assert done.returncode == 0, done.stderr
    assert "bits per byte (not comparable: 7" in (folder / "page.html").read_text(encoding="utf-8")


def test_tensorboard_marks_it(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    event = replace(validated(2, 1.0, 3.0), text_lost=0.5)
    with tensorboard_listener(tmp_path) as listener:
        listener(event)
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    assert "validation/bits_per_byte_not_comparable" in read.Tags()["scalars"]


def test_evaluate_marks_it_and_ranks_it_last(folder: Path) -> None:
    done = cpulm(folder, "evaluate", "runs/words", "runs/bytes", "--data", "rhyme.txt")
    assert "by the tokenizer: bits per byte are too low, and not comparable" in done.stdout
    first = done.stdout.index("runs/bytes")
    assert first < done.stdout.index("runs/words")
    assert "behind the best" not in done.stdout


def test_a_sample_prompt_that_cannot_be_encoded_names_its_setting(folder: Path) -> None:
    data = ("--tokenizer", "char", "--set", "data.vocab_size=null", "--set", "sample.prompt=é")
    done = cpulm(folder, "train", "--config", "small.yaml", *data, "--out", "runs/char", "--headless")
    assert done.returncode == 3
    assert "error: sample.prompt: the character vocabulary has no 'é'" in done.stderr
    assert "--set sample.prompt=TEXT" in done.stderr
