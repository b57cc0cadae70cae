"""``cpulm sweep`` with real processes, in a terminal and in scripts."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from forked import Forked
from forked import forks as forks

from cpulm.cli.main import main
from cpulm.events import StepDone, line_start
from cpulm.runlog.tail import Tail
from cpulm.sweep import run_sweep

pytestmark = pytest.mark.slow

SMALL = [
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "data.tokenizer=byte",
    "data.vocab_size=null",
    "train.micro_batch_size=2",
    "sample.max_new_tokens=0",
    "log.report=false",
    "runtime.compile=off",
    "runtime.threads=1",
]


class Done(NamedTuple):
    code: object
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def folder(in_empty_folder: Path) -> Path:
    text = "".join(f"{n} times {n} is {n * n}.\n" for n in range(400))
    (in_empty_folder / "text.txt").write_text(text)
    return in_empty_folder


def arguments(*more: str) -> list[str]:
    """A small sweep; what is given stands in place of what is small by itself."""
    given = {one.partition("=")[2].partition("=")[0] for one in more if one.startswith("--set=")}
    small = [f"--set={one}" for one in SMALL if one.partition("=")[0] not in given]
    return ["sweep", "--data", "text.txt", *small, *more]


@pytest.fixture
def run(
    folder: Path, forks: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run ``cpulm ARGUMENTS`` in this process, which looks at the trials often."""
    monkeypatch.setattr(run_sweep, "LOOK_SECONDS", 0.05)

    def call(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["cpulm", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code, *capsys.readouterr())

    return call


def steps_of(run: Path) -> list[int]:
    return [event.step for event in Tail(run / "metrics.jsonl").new_events() if isinstance(event, StepDone)]


def begin(folder: Path, words: list[str]) -> Forked:
    """``cpulm WORDS`` in a process of its own, which tells ``folder/said``."""
    return Forked(folder, *words, stderr=folder / "said")


def wait_for_step(run: Path, process: Forked) -> None:
    """Until the run of a trial has made a step."""
    end = time.monotonic() + 100
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and line_start(StepDone) in metrics.read_bytes()):
        assert process.poll() is None, (run.parents[2] / "said").read_text()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_presets_block_size_follows_the_text_and_a_given_one_does_not(run: Run, folder: Path) -> None:
    (folder / "short.txt").write_text("the cat sat on the mat and the dog ran off. " * 40)
    asked = ["sweep", "short.txt", "--preset=tiny", "--tokenizer=byte", "--steps=2", "--dry-run"]
    done = run(*asked, "--set=train.lr=1e-3,1e-2")
    assert done.code == 0, done.err
    assert "block_size is 80 instead of 256" in done.err
    refused = run(*asked, "--set=train.lr=1e-3,1e-2", "--block-size=256")
    assert refused.code == 2
    assert "block_size" in refused.err


def test_a_dry_run_shows_the_runs_and_makes_none(run: Run, folder: Path) -> None:
    asked = arguments("--set=train.lr=1e-3,1e-2", "--steps", "64", "--halving", "--dry-run")
    done = run(*asked)
    assert done.code == 0
    assert "lr=1e-3" in done.out
    assert "2,048" in done.out  # 64 steps of 2 x 16 tokens
    trials = json.loads(run(*asked, "--json").out)["trials"]
    assert [trial["rungs"] for trial in trials] == [[32], [32]]
    assert [path.name for path in folder.iterdir()] == ["text.txt"]


def test_the_worse_half_stops_early_and_the_best_stands_first(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPULM_TRAIN__SEED", "3")  # holds for all, and not over what is tried
    monkeypatch.setenv("CPULM_TRAIN__LR", "5")
    hopeless = "1e-7"
    asked = arguments(
        f"--set=train.lr={hopeless},1e-2",
        "--set=train.optimizer=adamw",
        "--steps=500",
        "--halving",
        # Each validation is in the record at once, so a trial is asked to stop soon after the rung.
        "--set=eval.every=25",
        "--set=eval.batches=1",
    )
    done = run(*asked, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    best, other = found["trials"]
    assert best["values"] == {"train.lr": 0.01}
    assert (best["state"], best["step"], best["rung"]) == ("finished", 500, 1)
    assert (other["state"], other["rung"]) == ("stopped early", 0)
    assert other["step"] < 500
    assert best["bits_per_byte"] < other["bits_per_byte"]
    assert found["best"] == best["run"]
    assert "seed: 3" in Path(found["sweep"], "trials", "lr=1e-2.yaml").read_text()
    # A run that was stopped at a rung continues exactly: no step is missing or repeated.
    assert steps_of(folder / best["run"]) == list(range(1, 501))

    again = run(*asked)
    assert again.code == 0
    assert "continuing sweeps/tiny-1" in again.err
    assert again.out.index("lr=1e-2") < again.out.index("lr=1e-7")
    assert f"best: {best['run']}" in again.err
    assert run("resume", "sweeps/tiny-1", "--json").out == done.out


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signal to another process")
def test_ctrl_c_saves_every_run_and_resume_goes_on(run: Run, folder: Path) -> None:
    asked = arguments("--set=train.steps=2000,9", "--headless")
    process = begin(folder, asked)
    first = folder / "sweeps" / "tiny-1" / "steps=2000"
    wait_for_step(first, process)
    os.kill(process.pid, signal.SIGINT)
    code, said = process.wait(), (folder / "said").read_text()
    assert code == 75, said
    assert "cpulm resume sweeps/tiny-1" in said
    reached = steps_of(first)[-1]
    assert (first / "latest.pt").is_file()
    assert not (folder / "sweeps" / "tiny-1" / "steps=9").exists()
    refused = run("resume", "sweeps/tiny-1", "--steps", "5")
    assert (refused.code, "leave out the other options" in refused.err) == (2, True)
    done = run("resume", "sweeps/tiny-1", "--json")
    assert done.code == 0, done.err
    assert [trial["state"] for trial in json.loads(done.out)["trials"]] == ["finished", "finished"]
    assert steps_of(first) == list(range(1, 2001))
    assert reached < 2000


@pytest.mark.skipif(os.name == "nt", reason="Windows has no kill -9")
def test_a_sweep_that_was_killed_continues_the_run_it_left_behind(run: Run, folder: Path) -> None:
    asked = arguments("--set=train.steps=2000,9", "--headless")
    process = begin(folder, asked)
    first = folder / "sweeps" / "tiny-1" / "steps=2000"
    wait_for_step(first, process)
    refused = run("resume", "sweeps/tiny-1")
    assert refused.code == 2
    assert f"process {process.pid} on" in refused.err
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = run(*asked, "--json")  # the same command again
    assert done.code == 0, done.err
    assert [trial["state"] for trial in json.loads(done.out)["trials"]] == ["finished", "finished"]
    assert steps_of(first) == list(range(1, 2001))


def test_a_trial_that_fails_is_left_out_with_its_reason(run: Run, folder: Path) -> None:
    """A word that the vocabulary of one trial lacks, in a prompt that both have."""
    done = run(*arguments("--set=data.tokenizer=byte,char", "--set=sample.prompt=ß", "--steps=4", "--json"))
    assert done.code == 0, done.err
    best, other = json.loads(done.out)["trials"]
    assert best["values"] == {"data.tokenizer": "byte"}
    assert other["state"] == "failed"
    assert "'ß'" in other["said"]
    assert "checkpoint cannot be used (exit code 3)" in done.err


def test_if_every_trial_fails_the_sweep_fails(run: Run) -> None:
    tried = ("--set=data.tokenizer=char", "--set=sample.prompt=ß", "--set=train.lr=1e-3,2e-3")
    done = run(*arguments(*tried, "--steps=4"))
    assert done.code == 3
    assert "'ß'" in done.err
    assert "hint: see sweeps/tiny-1/trials/lr=1e-3.log" in done.err


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["sweep"], 2, "nothing to try"),
        (["sweep", "--set", "train.lr=1,2", "--seed", "4"], 2, "--seed"),
        (["sweep", "--resume", "sweeps/tiny-1", "--steps", "5"], 2, "continues as planned"),
        (["sweep", "--resume", "absent"], 3, "absent"),
        (["sweep", "--set", "train.lrr=1,2"], 2, "train.lrr"),
        (["sweep", "-", "--set", "train.lr=1,2", "--steps", "5"], 2, "read only once"),
    ],
)
def test_a_mistake_is_one_message_one_hint_and_its_exit_code(
    run: Run, words: list[str], code: int, named: str
) -> None:
    done = run(*words)
    assert done.code == code
    assert named in done.err
    assert "hint:" in done.err
    assert done.out == ""
    assert not Path("sweeps").exists()
