"""``cpulm benchmark``: real updates of a small model; the figures must be consistent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import cpulm

from cpulm.benchmark import step_benchmark
from cpulm.cli import benchmark

pytestmark = pytest.mark.slow

SMALL = [
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "data.tokenizer=byte",
    "data.vocab_size=null",
    "train.micro_batch_size=4",
    "runtime.threads=1",
]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates are taken for a moment, and the peak is that of one small product."""
    monkeypatch.setattr(benchmark, "_QUICK_SECONDS", 0.2)
    monkeypatch.setattr(step_benchmark, "SIDES", (512,))


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    small = [part for setting in SMALL for part in ("--set", setting)]
    return cpulm(cwd, "benchmark", *small, *arguments)


def measured(*arguments: str, cwd: Path) -> dict[str, Any]:
    done = run("--json", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def test_figures_fit_each_other(tmp_path: Path) -> None:
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    record = measured(
        "--quick", str(text), "--set=train.grad_accum_steps=3", "--set=train.steps=50", cwd=tmp_path
    )
    assert record["tokens_per_step"] == 4 * 16 * 3
    step = record["timing"]["step_seconds"]
    assert record["tokens_per_second"] == pytest.approx(4 * 16 * 3 / step)
    assert record["epoch_seconds"] == pytest.approx(record["train_tokens"] / record["tokens_per_second"])
    assert set(record["timing"]["parts"]) == {"data", "forward", "backward", "optimizer"}
    assert sum(record["timing"]["parts"].values()) == pytest.approx(step, rel=0.5)
    validations = (record["horizon_seconds"] - 50 * step) / record["validation_seconds"]
    assert validations == pytest.approx(round(validations))
    assert round(validations) > 1  # in 50 updates the text is seen several times
    assert record["peak"]["memory_gb_per_second"] > 0.1
    assert 0 < record["share_of_peak"] < 1
    assert record["precision"] == record["runtime"]["precision"]
    assert record["compiled"] is None
    assert record["memory_bytes"] > 50 * 2**20
    assert not [path for path in tmp_path.iterdir() if path != text]  # nothing is trained, nothing written


def test_without_text_no_pass_over_it_is_claimed(tmp_path: Path) -> None:
    done = run("--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a pass" not in done.stdout
    for words in ("tok/s", "precision", "machine's fp32 peak", "Where a step goes", "forward", "choice"):
        assert words in done.stdout


def test_more_accumulation_is_not_measured_more_often(tmp_path: Path) -> None:
    one = measured("--quick", cwd=tmp_path)
    many = measured("--quick", "--set=train.grad_accum_steps=64", cwd=tmp_path)
    assert many["timing"]["parts"]["forward"] > 8 * one["timing"]["parts"]["forward"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--all", "--preset", "tiny"], "--all measures every preset"),
        (["--preset", "tinny"], "tiny"),
        (["--threads", "4096"], "--threads 4096"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


def test_hosts_share_the_batch_of_one_as_far_as_it_has_rows(tmp_path: Path) -> None:
    hosts = ("--quick", "--hosts=8", "--network=100mbit,50ms")
    done = run("--json", *hosts, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tables = json.loads(done.stdout)
    assert [(one["exchange"]["mode"], one["grows"]) for one in tables] == [
        ("sync", False),
        ("sync", True),
        ("diloco", False),
        ("diloco", True),
    ]
    for table in tables:
        assert [row["hosts"] for row in table["found"]] == ([1, 2, 4, 8] if table["grows"] else [1, 2, 4])
        assert [row["rows"] for row in table["found"]] == ([4] * 4 if table["grows"] else [4, 2, 1])
        assert table["useful"] <= (64 if table["grows"] else 4)
    rounds = ("distributed.mode=diloco", "distributed.compression=int2", "train.outer_steps=9")
    shown = run(*hosts, *(word for one in rounds for word in ("--set", one)), cwd=tmp_path).stdout
    assert shown.count("efficiency") == 4
    assert "sent as int2, rounds of 9 updates" in shown
    assert shown.count("sent as int2") == 2  # gradients are not
    assert "A model, not a measurement" in shown
