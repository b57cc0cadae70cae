"""A run of two processes: it trains what one does, within rounding; one writes, and all end alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import forked
from ranks import ranks
from small_runs import SMALL
from torch._C._distributed_c10d import HashStore

from cpulm import __version__
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.data.batch_pieces import BatchPiece, pieces_of, require_divisible
from cpulm.distributed.join import _introduced
from cpulm.errors import SettingsError
from cpulm.events import Event, StepDone, Validated, from_json

TEXT = "\n\n".join(f"{n} and {n + 1} are {2 * n + 1}." for n in range(400))

LOW_TRAFFIC = {
    "CPULM_DISTRIBUTED__MODE": "diloco",
    "CPULM_TRAIN__OUTER_STEPS": "2",
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def options(*more: str) -> list[str]:
    settings = [*SMALL, "model.dropout=0", "runtime.precision=fp32", *more]
    return ["--headless", *(word for one in settings for word in ("--set", one))]


def events(run: Path, kind: type[Event]) -> list[Any]:
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [event for event in map(from_json, lines) if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("batches", "size", "expected"),
    [
        ([7], 2, [[BatchPiece(7, 0, 2)], [BatchPiece(7, 2, 4)]]),
        ([7, 9], 2, [[BatchPiece(7)], [BatchPiece(9)]]),
        (
            [0, 1, 2],
            2,
            [[BatchPiece(0), BatchPiece(1, 0, 2)], [BatchPiece(1, 2, 4), BatchPiece(2)]],
        ),
        (
            [5, 6],
            4,
            [[BatchPiece(5, 0, 2)], [BatchPiece(5, 2, 4)], [BatchPiece(6, 0, 2)], [BatchPiece(6, 2, 4)]],
        ),
    ],
)
def test_the_rows_of_an_update_are_divided_in_order(
    batches: list[int], size: int, expected: list[list[BatchPiece]]
) -> None:
    assert [pieces_of(batches, 4, rank, size) for rank in range(size)] == expected


def test_a_batch_that_cannot_be_divided_is_refused_with_what_can() -> None:
    require_divisible(4, 3, 6)
    with pytest.raises(SettingsError, match="3 processes cannot share an update of 4 rows") as refused:
        require_divisible(4, 1, 3)
    assert "use 2 processes, or --batch-size 6" in refused.value.hint


@pytest.mark.parametrize(
    "more",
    [
        ["train.micro_batch_size=4"],
        # Three micro-batches: each process has one and half of another. Rows count differently many tokens.
        ["train.grad_accum_steps=3", "train.records=true", "data.document=paragraph"],
    ],
    ids=["rows of a micro-batch", "micro-batches of records"],
)
def test_two_processes_train_as_one_within_rounding(text: Path, tmp_path: Path, more: list[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert forked(tmp_path, "train", str(text), f"--out={one}", *options(*more)).returncode == 0
    done = ranks(tmp_path, 2, "train", str(text), f"--out={two}", *options(*more))
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    assert done[1].stdout == done[1].stderr == ""
    alone, together = events(one, StepDone), events(two, StepDone)
    assert [step.tokens for step in together] == [step.tokens for step in alone]
    assert [step.loss for step in together] == pytest.approx([step.loss for step in alone], rel=2e-5)
    assert [step.grad_norm for step in together] == pytest.approx([s.grad_norm for s in alone], rel=1e-3)
    validated = [[(v.step, v.tokens) for v in events(run, Validated)] for run in (one, two)]
    assert validated[0] == validated[1]
    weights = [checkpoints.load(run / "latest.pt").model_state for run in (one, two)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-2, atol=1e-4)


def test_compressed_gradients_train_nearly_the_same(text: Path, tmp_path: Path) -> None:
    losses = {}
    for how in ("none", "bf16", "int8"):
        more = options("train.steps=5", f"distributed.compression={how}")
        done = ranks(tmp_path, 2, "train", str(text), f"--out={tmp_path / how}", *more)
        assert [process.returncode for process in done] == [0, 0], done[0].stderr
        losses[how] = [step.loss for step in events(tmp_path / how, StepDone)]
    assert losses["none"] != losses["bf16"] != losses["int8"]
    for how in ("bf16", "int8"):
        assert losses[how] == pytest.approx(losses["none"], rel=1e-2)


def test_a_resumed_run_is_exact_with_as_many_processes_and_close_with_another_number(
    text: Path, tmp_path: Path
) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    more = options("model.dropout=0.2", "checkpoint.every_steps=6", "train.steps=10")
    ranks(tmp_path, 2, "train", str(text), f"--out={run}", *more)
    shutil.copytree(run, again)
    done = ranks(tmp_path, 2, "resume", str(again / "step-00000006.pt"), "--headless")
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    first, second = (checkpoints.load(folder / "latest.pt").model_state for folder in (run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = forked(tmp_path, "resume", str(again / "step-00000006.pt"), "--headless", "--nproc=1")
    assert alone.returncode == 0, alone.stderr
    assert "processes 2 -> 1" in alone.stderr
    losses = [[step.loss for step in events(folder, StepDone)] for folder in (run, again)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # dropout differs


@pytest.mark.parametrize(
    ("each", "said"),
    [
        ([{}, {"CPULM_TRAIN__SEED": "7"}], "train.seed is 7 on"),
        ([LOW_TRAFFIC, {}], "distributed.mode is 'sync' on"),
        ([{}, LOW_TRAFFIC], "distributed.mode is 'diloco' on"),
    ],
)
def test_other_settings_on_a_machine_are_an_error_that_names_it(
    text: Path, tmp_path: Path, each: list[dict[str, str]], said: str
) -> None:
    done = ranks(tmp_path, 2, "train", str(text), f"--out={tmp_path / 'run'}", *options(), each=each)
    assert [process.returncode for process in done] == [2, 2]
    assert said in done[0].stderr
    assert done[1].stderr == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({"cpulm": "0.0.1"}, r"the version of cpulm on beta is 0\.0\.1, and on "),
        ({"gloo": False}, "torch on beta was built without gloo"),
    ],
)
def test_a_machine_that_cannot_take_part_is_named_before_anything_else(
    fact: dict[str, object], said: str
) -> None:
    store = HashStore()
    store.set("who/1", json.dumps({"host": "beta", "pid": 1, "claim": 0, "cpulm": __version__, **fact}))
    store.set("refused/1", "")
    with pytest.raises(SettingsError, match=said):
        _introduced(store, 0, 2, has_run=True)


def test_an_error_in_one_process_ends_all_with_its_code(text: Path, tmp_path: Path) -> None:
    other = {"CPULM_DATA__SOURCE": str(tmp_path / "missing.txt")}
    done = ranks(
        tmp_path,
        2,
        "train",
        f"--out={tmp_path / 'run'}",
        *options(),
        each=[{"CPULM_DATA__SOURCE": str(text)}, other],
    )
    assert [process.returncode for process in done] == [3, 3]
    assert "process 2 of 2" in done[0].stderr
    assert "missing.txt" in done[0].stderr


def test_a_dry_run_is_of_all_processes(text: Path, tmp_path: Path) -> None:
    main, other = ranks(tmp_path, 2, "train", str(text), "--dry-run", *options())
    assert [main.returncode, other.returncode] == [0, 0], main.stderr
    assert "for each of 2 processes" in main.stdout
    assert other.stdout == ""
    assert not (tmp_path / "runs").exists()
