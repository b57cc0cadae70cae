"""``cpulm train`` and ``cpulm resume``: which output goes to which stream, and exit codes."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from pathlib import Path

import pytest
import yaml
from command_line import cpulm, cpulm_in_a_process
from forked import Forked, forked

from cpulm.cli.run_training import _next_commands
from cpulm.events import EndReason
from cpulm.run_dir import RunDir
from cpulm.training.run import RunOutcome

QUICK = """
model: {n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {tokenizer: byte, vocab_size: null, source: %s}
train: {micro_batch_size: 4, steps: 8, warmup_steps: 1}
eval: {every: 4}
sample: {max_new_tokens: 5}
runtime: {threads: 1, compile: "off"}
log: {report: false}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rhyme.txt").write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    (tmp_path / "quick.yaml").write_text(QUICK % "rhyme.txt")
    return tmp_path


def test_text_in_a_model_out_and_its_path_on_stdout(folder: Path) -> None:
    done = cpulm_in_a_process(folder, "train", "--config", "quick.yaml", "--set", "log.report=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{Path('runs') / 'run-1' / 'best.pt'}\n"
    assert re.search(r"step\s+8/8\s+loss", done.stderr)
    assert "\x1b" not in done.stderr
    place = Path("runs") / "run-1"
    for command in (f"generate {place} --interactive", f"analyze {place}", f"resume {place} --steps 16"):
        assert f"  cpulm {command} " in done.stderr
    assert (folder / "runs" / "run-1" / "report.html").is_file()
    again = cpulm(folder, "train", "--config", "runs/run-1/settings.yaml", "--set", "log.report=false")
    assert again.stdout == f"{Path('runs') / 'run-2' / 'best.pt'}\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals of this kind")
def test_what_to_type_next_stands_below_the_dashboard(folder: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    name = os.ttyname(theirs)
    process = Forked(folder, "train", "--config", "quick.yaml", stdin=name, stdout=name, stderr=name)
    shown = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 1 << 16)
    for one in (ours, theirs):
        os.close(one)
    _, _, after = shown.decode().rpartition("finished after step 8")
    lines = [line.rstrip() for line in after.partition("next:")[2].splitlines()[1:]]
    assert [line.partition("# ")[2] for line in lines[:3]] == [
        "try the model",
        "see what it learned",
        "train it for longer",
    ]
    assert len({line.index("#") for line in lines[:3]}) == 1
    assert lines[3:] == ["runs/run-1/best.pt"]


def test_longer_training_is_not_the_next_thing_after_overfitting(folder: Path) -> None:
    run = RunDir(folder)
    run.settings.write_text("preset: tiny")
    ends: list[tuple[EndReason, bool]] = [("horizon", False), ("horizon", True), ("patience", False)]
    said = [_next_commands(run, RunOutcome(run, reason, 8, risen)) for reason, risen in ends]
    assert ["cpulm resume" in one for one in said] == [True, False, False]
    assert all("cpulm analyze" in one for one in said)


def test_json_lines_on_stdout_and_nothing_else(folder: Path) -> None:
    done = forked(folder, "train", "--config", "quick.yaml", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 9))
    assert events[-1]["event"] == "run_finished"
    assert events[-1]["reason"] == "horizon"
    assert "loss" not in done.stderr


def test_settings_come_from_all_layers(folder: Path) -> None:
    done = cpulm(
        folder,
        *("train", "--config", "quick.yaml", "--print-config"),
        *("--set", "model.n_layer=2", "--set", "train.lr=3e-4", "--steps", "5", "--lr", "0.5"),
        CPULM_TRAIN__SEED="7",
        CPULM_MODEL__N_LAYER="3",
    )
    printed = yaml.safe_load(done.stdout)
    assert printed["model"]["n_layer"] == 2
    assert printed["train"]["seed"] == 7
    assert printed["train"]["steps"] == 5
    assert printed["train"]["lr"] == 0.5
    assert printed["model"]["n_embd"] == 16
    assert not (folder / "runs").exists()


def test_a_dry_run_says_what_is_needed_and_leaves_nothing(folder: Path) -> None:
    done = cpulm(folder, "train", "--config", "quick.yaml", "--dry-run", "--json")
    needs = json.loads(done.stdout)
    assert needs["steps"] == 8
    assert needs["params_total"] == 257 * 16 + 3 * 16 + 2 * 8 + 4 * 16 * 16 + 3 * 16 * 64
    assert 0 < needs["step_seconds"] < 10
    assert needs["memory_bytes"] > 0
    assert needs["disk_bytes"] > 0
    assert not (folder / "runs").exists()
    words = cpulm(folder, "train", "--config", "quick.yaml", "--dry-run").stdout
    for word in ("parameters", "memory", "disk", "tokens a step", "seconds a step", "time to finish"):
        assert word in words


def test_presets_are_listed_with_their_true_sizes(folder: Path) -> None:
    listed = json.loads(cpulm(folder, "train", "--list-presets", "--json").stdout)
    sizes = {preset["name"]: preset["params_total"] for preset in listed}
    assert [preset["name"] for preset in listed[:4]] == ["tiny", "small", "medium", "large"]
    assert round(sizes["llm-trainer-small"] / 1e6, 1) == 19.5
    assert round(sizes["nanochat-d4"] / 1e6, 1) == 4.2
    assert round(sizes["nanogpt-char"] / 1e6, 2) == 0.80
    table = cpulm(folder, "train", "--list-presets").stdout
    assert all(name in table for name in sizes)


MISTAKES = [
    (["--preset", "tinny"], 2, "tinny", "tiny"),
    (["--set", "train.lrr=1"], 2, "train.lrr", "train.lr"),
    (["--set", "model.n_embd=17"], 2, "n_embd", ""),
    (["--set", "data.val_fraction=0.001"], 2, "block_size", ""),
    (["--steps", "5", "--epochs", "1"], 2, "horizon", ""),
    (["--max-time", "soon"], 2, "soon", "1h30m"),
    (["--data", "absent.txt"], 3, "absent.txt", ""),
    (["--threads", "9999"], 2, "9999", "at most"),
    (["--device", "cuda"], 2, "cuda", "cpu"),
    (["--set", "model.n_embd=200000"], 5, "memory", ""),
    (["--config", "nowhere.yaml"], 2, "nowhere.yaml", ""),
    (["--out", "thesis"], 2, "thesis", "--out"),
    (["--until", "25:00"], 2, "25:00", "07:00"),
    (["--until", "2020-01-01 07:00"], 2, "has passed", "07:00"),
    (["--until", "07:00", "--steps", "5"], 2, "horizon", ""),
    (["--overnight", "--dry-run"], 2, "--overnight", "leave one out"),
]


def test_a_mistake_ends_the_process_with_its_exit_code(folder: Path) -> None:
    done = forked(folder, "train", "--config", "quick.yaml", "--data", "absent.txt")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 2, done.stderr


@pytest.mark.parametrize(("arguments", "code", "named", "hinted"), MISTAKES)
def test_a_mistake_is_one_message_one_hint_and_its_exit_code(
    folder: Path, arguments: list[str], code: int, named: str, hinted: str
) -> None:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.txt").write_text("mine")
    config = [] if "--config" in arguments else ["--config", "quick.yaml"]
    done = cpulm(folder, "train", *config, *arguments)
    assert done.returncode == code, done.stderr
    assert named in done.stderr
    assert hinted in done.stderr
    assert done.stdout == ""
    assert not (folder / "runs").exists()
    assert (folder / "thesis" / "chapter.txt").read_text() == "mine"


def test_debugging_shows_the_traceback(folder: Path) -> None:
    done = forked(folder, "train", "--preset", "tinny", CPULM_DEBUG="1")
    assert "Traceback" in done.stderr


def test_out_that_is_a_run_is_continued_only_on_request(folder: Path) -> None:
    run = ["train", "--config", "quick.yaml", "--out", "here"]
    assert cpulm(folder, *run).returncode == 0
    refused = cpulm(folder, *run)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    went_on = cpulm(folder, *run, "--resume", "--steps", "10")
    assert went_on.returncode == 0, went_on.stderr
    steps = [json.loads(line) for line in (folder / "here" / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in steps if event["event"] == "step"] == list(range(1, 11))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_saves_and_prints_how_to_continue(folder: Path, number: signal.Signals) -> None:
    command = ("train", "--config", "quick.yaml", "--steps", "1000000")
    process = Forked(folder, *command, stderr=folder / "said")
    metrics = folder / "runs" / "run-1" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while '"step":' not in (metrics.read_text() if metrics.exists() else ""):
        assert time.monotonic() < deadline, (folder / "said").read_text()
        time.sleep(0.1)
    os.kill(process.pid, number)
    assert process.wait() == 75
    assert "cpulm resume" in (folder / "said").read_text()
    assert (folder / "runs" / "run-1" / "latest.pt").is_file()


def test_resume_names_a_folder_that_is_not_a_run(folder: Path) -> None:
    for path in (".", "rhyme.txt", "absent"):
        done = cpulm(folder, "resume", path)
        assert done.returncode == 3, path
    unusable = ("distributed: {processes: many}", "distributed: 5", "distributed: {new: 1}")
    for number, text in enumerate(unusable):
        (folder / f"run-{number}").mkdir()
        (folder / f"run-{number}" / "settings.yaml").write_text(text)
        assert cpulm(folder, "resume", f"run-{number}").returncode == 3, text
    (folder / "not.pt").write_text("x" * 1000)
    done = cpulm(folder, "resume", "not.pt")
    assert done.returncode == 3
    assert "not.pt" in done.stderr


@pytest.mark.parametrize("command", [[], ["train"], ["resume"], ["generate"], ["tokenize"], ["sysinfo"]])
def test_help_reads_like_documentation(folder: Path, command: list[str]) -> None:
    done = cpulm(folder, *command, "--help", COLUMNS="100")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    if command:
        assert "Example" in done.stdout
