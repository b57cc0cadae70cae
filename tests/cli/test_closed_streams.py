"""Every command with a closed standard stream, as by ``2>&-``, still does its work.

The work is done all the same; only data that could not be written is an error.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from forked import CLOSED, Forked

from cpulm.command import cpulm_command

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX streams")

QUICK = """
model: {n_layer: 1, n_head: 2, n_embd: 16, block_size: 16}
data: {tokenizer: byte, vocab_size: null, source: rhyme.txt}
train: {micro_batch_size: 4, steps: 4, warmup_steps: 1}
eval: {every: 4}
sample: {max_new_tokens: 5}
runtime: {threads: 1, compile: "off", precision: fp32}
"""
ALL = {"stdin": CLOSED, "stdout": CLOSED, "stderr": CLOSED}
RUN = "runs/run-1"


def code(folder: Path, arguments: str, **streams: str) -> int:
    """The exit code of a command with some streams closed; nothing it opens may get their numbers."""
    files = {**dict.fromkeys(ALL, os.devnull), **(streams or ALL)}
    stdin, stdout, stderr = (files[name] for name in ALL)
    return Forked(folder, *arguments.split(), stdin=stdin, stdout=stdout, stderr=stderr).wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text and a run that was trained without any stream."""
    path = tmp_path_factory.mktemp("closed")
    (path / "rhyme.txt").write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    (path / "quick.yaml").write_text(QUICK)
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *cpulm_command("train", "--config", "quick.yaml")]
    assert subprocess.run(command, cwd=path, check=False).returncode == 0  # closed by a shell, as a user does
    return path


def test_training_runs_and_its_files_hold_nothing_else(folder: Path) -> None:
    run = folder / RUN
    assert {"best.pt", "latest.pt", "report.html"} <= {path.name for path in run.iterdir()}
    assert all(line.startswith(b'{"event":') for line in (run / "metrics.jsonl").read_bytes().splitlines())


@pytest.mark.parametrize("stream", ALL)
def test_training_with_one_stream_closed(folder: Path, tmp_path: Path, stream: str) -> None:
    for name in ("rhyme.txt", "quick.yaml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    arguments = "train --config quick.yaml --json --set log.report=false"
    assert code(tmp_path, arguments, **{stream: CLOSED}) == 0
    assert (tmp_path / RUN / "best.pt").is_file()


@pytest.mark.parametrize(
    ("arguments", "ended"),
    [
        ("--help", 0),
        ("train --help", 0),
        ("sysinfo", 0),
        ("runs", 0),
        (f"analyze {RUN}", 0),
        (f"watch {RUN}", 0),
        (f"stop {RUN}", 0),
        (f"summary {RUN}", 0),
        (f"at-boot {RUN}", 0),
        (f"generate --checkpoint {RUN} --max-new-tokens 4", 0),
        (f"generate --checkpoint {RUN} --interactive", 0),
        (f"evaluate --checkpoint {RUN} rhyme.txt", 0),
        ("tokenize rhyme.txt --tokenizer byte --out tokens", 0),
        (f"evaluate --checkpoint {RUN} missing.txt", 3),
        ("train --stepz 3", 2),
        (f"resume {RUN}", 2),
    ],
)
def test_every_command_ends_as_it_would_otherwise(folder: Path, arguments: str, ended: int) -> None:
    assert code(folder, arguments) == ended


def test_a_night_begins_without_streams(folder: Path) -> None:
    assert code(folder, "train --config quick.yaml --out night --no-nice --overnight") == 0
    assert (folder / "night" / "overnight.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("streams", [["stdout"], ["stderr"], ["stdout", "stderr"]], ids=" ".join)
@pytest.mark.parametrize("json", ["--json", ""])
def test_a_full_disk_for_the_output_never_costs_training(
    folder: Path, tmp_path: Path, json: str, streams: list[str]
) -> None:
    for name in ("rhyme.txt", "quick.yaml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    arguments = f"train --config quick.yaml {json} --set log.report=false"
    assert code(tmp_path, arguments, **dict.fromkeys(streams, "/dev/full")) == 0
    assert (tmp_path / RUN / "best.pt").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        f"generate --checkpoint {RUN} --max-new-tokens 4",
        f"generate --checkpoint {RUN} --max-new-tokens 4 --json",
        f"analyze {RUN}",
        f"analyze {RUN} --json",
        f"evaluate --checkpoint {RUN} rhyme.txt",
        "runs",
        "--help",
        "--version",
    ],
)
def test_data_that_could_not_be_written_is_an_error(folder: Path, tmp_path: Path, arguments: str) -> None:
    said = tmp_path / "said"
    assert code(folder, arguments, stdout="/dev/full", stderr=str(said)) == 5
    assert "error: the output cannot be written: No space left on device\n" in said.read_text()
    assert "Traceback" not in said.read_text()


def test_a_working_folder_that_is_gone_is_one_message(folder: Path) -> None:
    """torch would end the process with a message of its own."""
    command = ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh"]
    command += cpulm_command("generate", "runs/run-1")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the working folder no longer exists\n hint: ")
