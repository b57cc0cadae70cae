"""``cpulm analyze``: its files, its output, and its errors."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from small_runs import settings_for, train

from cpulm.analysis.build_report import read_report
from cpulm.analysis.compare import compare
from cpulm.cli.main import main
from cpulm.events import StepDone, line_start
from cpulm.ui.analysis import report_screen
from cpulm.ui.analysis_compare import comparison_screen
from cpulm.ui.analysis_curves import Series
from cpulm.ui.canvas import ASCII, UNICODE, Glyphs

LOADED = """
import sys
from cpulm.cli.main import main
try:
    main()
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""


class Done(NamedTuple):
    code: object
    out: str
    err: str


Cpulm = Callable[..., Done]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs: two that differ in their learning rate, and one of another tokenizer."""
    folder = tmp_path_factory.mktemp("analyze")
    text = folder / "text.txt"
    text.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(400)))
    threads = torch.get_num_threads()
    for name, change in (
        ("low", "train.lr=1e-3"),
        ("high", "train.lr=1e-2"),
        ("words", "data.tokenizer=word"),
    ):
        train(settings_for(text, "train.steps=20", change), folder / "runs" / name)
    torch.set_num_threads(threads)
    return folder / "runs"


@pytest.fixture
def cpulm(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cpulm:
    """``cpulm analyze`` in this process, in the folder of the runs; a pipe is a hundred cells wide."""
    monkeypatch.chdir(runs)

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["cpulm", "analyze", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Done(ended.value.code, said.out, said.err)

    return call


def damaged(run: Path, copy: Path, lines: Sequence[bytes] = (), cut: int = 0) -> Path:
    """A copy of a run whose record has other lines, or lacks its last bytes."""
    shutil.copytree(run, copy)
    record = copy / "metrics.jsonl"
    text = b"".join(lines) if lines else record.read_bytes()
    record.write_bytes(text[: len(text) - cut])
    return copy


def test_a_run_is_described_in_a_pipe(cpulm: Cpulm) -> None:
    code, out, err = cpulm("low")
    assert (code, err) == (0, "")
    heads = (
        "low\n",
        "Settings that differ",
        "loss by step",
        "Where the time went",
        "What happened",
        "Samples",
    )
    assert [head for head in heads if head not in out] == []
    assert "\x1b" not in out


def test_json_is_one_object_with_curves_and_findings(cpulm: Cpulm) -> None:
    code, out, err = cpulm("low", "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert record["curves"]["loss"]["steps"] == list(range(1, 21))
    assert record["figures"]["precision"] in ("fp32", "int8", "bf16")
    assert record["figures"]["peak_flops_per_second"] > 0
    assert {"kind", "weight", "text", "figures"} <= record["findings"][0].keys()


def test_runs_are_compared_best_first(cpulm: Cpulm) -> None:
    code, out, _ = cpulm("low", "high")
    best, behind = out.splitlines()[3:5]
    assert code == 0
    assert (best.split()[:2], behind.split()[:2]) == (["a", "high"], ["b", "low"])
    assert "validation loss by step" in out


def test_a_folder_of_runs_with_other_tokenizers_is_compared_by_bits_per_byte(cpulm: Cpulm) -> None:
    code, out, _ = cpulm(".")
    words = " ".join(out.split())
    assert code == 0
    assert "validation bits per byte by step" in words
    assert "The runs have different tokenizers" in words
    assert " loss " not in out.splitlines()[1]


@pytest.mark.parametrize("by", ["tokens", "time", "flops"])
def test_curves_of_several_runs_stand_along_another_axis(cpulm: Cpulm, by: str) -> None:
    named = {"tokens": "trained tokens", "time": "time", "flops": "FLOPs"}[by]
    assert f"validation loss by {named}" in cpulm("low", "high", "--by", by).out


def test_an_axis_of_one_run_has_no_effect_and_that_is_said(cpulm: Cpulm) -> None:
    code, out, err = cpulm("low", "--by", "time")
    assert (code, out) == (0, cpulm("low").out)
    assert err == "warning: --by has no effect: it is for the curves of several runs in the terminal\n"


def test_page_and_pictures_are_written_and_named_on_stdout(cpulm: Cpulm, tmp_path: Path) -> None:
    page, pictures = tmp_path / "report.html", tmp_path / "pictures"
    code, out, _ = cpulm("low", "--html", str(page), "--png", str(pictures))
    written = [Path(line) for line in out.splitlines()]
    assert code == 0
    assert written[0] == page
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert {path.name for path in written[1:]} >= {"loss.png", "lr.png", "time.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])


def test_a_model_is_looked_into_on_what_it_is_shown(cpulm: Cpulm, tmp_path: Path) -> None:
    text = tmp_path / "shown.txt"
    text.write_text("7 times 7 is 49.\n" * 40)
    code, out, _ = cpulm("low", "--model", "--data", str(text), "--prompt", "8 times", "--word", "t")
    assert code == 0
    assert "after '8 times'" in out
    assert "shown.txt" in "".join(out.split())
    assert "Nearest embeddings" in out


def test_a_checkpoint_without_its_data_needs_a_text(
    cpulm: Cpulm, runs: Path, tmp_path: Path, fresh_cache: Path
) -> None:
    text = tmp_path / "text.txt"
    shutil.copy(runs.parent / "text.txt", text)
    _, done = train(settings_for(text, "train.steps=2"), tmp_path / "run")
    shutil.rmtree(fresh_cache / "tokens")
    text.unlink()
    code, out, err = cpulm(str(done.run.best), "--model")
    assert (code, out) == (3, "")
    assert err.count("error: ") == err.count(" hint: ") == 1
    assert "--data" in err
    assert cpulm(str(done.run.best), "--model", "--data", str(runs.parent / "text.txt")).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["nowhere"], 3, "nowhere does not exist", "give a run's folder"),
        (["--html", "x.html", "nowhere"], 3, "nowhere does not exist", "give a run's folder"),
        (["low", "--by", "weeks"], 2, "--by weeks is not an axis", "steps, tokens, time, flops"),
        (["low", "--prompt", "x"], 2, "--prompt has no effect without --model", "add --model"),
        (["low", "high", "--model"], 2, "--model inspects one model", "give one run"),
        (["low/best.pt", "--model", "--html", "x.html"], 2, "is a checkpoint", "give the run's folder"),
    ],
)
def test_an_invalid_request_is_one_error_and_one_hint(
    cpulm: Cpulm, arguments: list[str], code: int, error: str, hint: str
) -> None:
    done = cpulm(*arguments)
    assert (done.code, done.out) == (code, "")
    first, second = done.err.splitlines()
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith(" hint: ")
    assert hint in second
    assert not Path("x.html").exists()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "is not a run and contains none"),
        (b"", "has no metrics yet"),
        (b"\x00\xff\n{\n", "holds no event of a run"),
    ],
)
def test_a_folder_without_a_log_is_an_error_with_a_reason(
    cpulm: Cpulm, runs: Path, tmp_path: Path, content: bytes | None, error: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if content is not None:
        shutil.copy(runs / "low" / "settings.yaml", folder)
        (folder / "metrics.jsonl").write_bytes(content)
    code, out, err = cpulm(str(folder))
    assert (code, out) == (3, "")
    assert error in err.splitlines()[0]
    assert err.splitlines()[1].startswith(" hint: ")


def test_a_run_without_events_is_left_out_of_a_folder_with_a_warning(
    cpulm: Cpulm, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "low", tmp_path / "low")
    (tmp_path / "begun").mkdir()
    shutil.copy(runs / "low" / "settings.yaml", tmp_path / "begun")
    (tmp_path / "begun" / "metrics.jsonl").touch()
    code, out, err = cpulm(str(tmp_path))
    assert (code, out.splitlines()[0]) == (0, str(tmp_path / "low"))
    assert err.startswith("warning: left out: ")


def test_a_damaged_last_line_and_a_crash_are_told(cpulm: Cpulm, runs: Path, tmp_path: Path) -> None:
    lines = (runs / "low" / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    steps = [number for number, line in enumerate(lines) if line.startswith(line_start(StepDone))]
    cut = damaged(runs / "low", tmp_path / "cut", lines[: steps[12] + 1], cut=9)
    code, out, err = cpulm(str(cut))
    words = " ".join(out.split())
    assert (code, err) == (0, "")
    assert "crashed, its process ended unexpectedly" in words
    assert "1 line of the log cannot be read" in words
    assert "step 12 of 20 (60%)" in words


def test_an_ascii_terminal_of_80_columns_shows_everything(runs: Path) -> None:
    """A pipe gets UTF-8 whatever the locale; a terminal gets only the characters that it has."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "TERM": "xterm",
        "COLUMNS": "80",
    }
    command = [sys.executable, "-m", "cpulm", "analyze", "low"]
    process = subprocess.Popen(command, cwd=runs, env=environment, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    out = b""
    with contextlib.suppress(OSError):  # Linux's word for the end of a terminal
        while chunk := os.read(ours, 4096):
            out += chunk
    os.close(ours)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0
    assert out.isascii()
    assert b"loss by step" in out, out.decode()


def test_torch_is_not_loaded_for_a_record(runs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "analyze", "low", "high"],
        cwd=runs,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert "cpulm.analysis.build_report" in done.stderr.split()
    assert not {"torch", "tokenizers", "vl_convert"} & set(done.stderr.split())


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
def test_no_screen_is_wider_than_the_window(runs: Path, width: int, glyphs: Glyphs) -> None:
    reports = [read_report(runs / name) for name in ("low", "high")]
    comparison = compare(reports)
    series = [
        Series(number, report.curves["val_loss"].steps.astype(float), report.curves["val_loss"].values)
        for number, report in enumerate(comparison.reports)
    ]
    screens = {
        "Findings": report_screen(reports[0], width, glyphs),
        "Best first": comparison_screen(comparison, series, "steps", width, glyphs),
    }
    for head, screen in screens.items():
        console = Console(width=width, color_system=None)
        with console.capture() as capture:
            console.print(screen)
        lines = capture.get().splitlines()
        assert any(line.startswith(head) for line in lines)
        assert max(cell_len(line) for line in lines) <= width
