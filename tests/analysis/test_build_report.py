"""Builds reports of finished, running, crashed, damaged, rolled-back and resumed runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from recorded_runs import validated

from cpulm.analysis.as_json import report_as_json
from cpulm.analysis.build_report import read_report
from cpulm.analysis.downsample import curve
from cpulm.errors import DataError
from cpulm.events import CheckpointSaved, LayerStats, Notice, RolledBack, SampleMade, to_json
from cpulm.run_dir import RunDir
from cpulm.runlog import run_log
from cpulm.runlog.run_log import read_run_log
from cpulm.runs.lock import locked

if TYPE_CHECKING:
    from recorded_runs import MakeRun


def append(run: Path, text: str) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(text)


def test_the_report_of_a_finished_run_is_complete(make_run: MakeRun) -> None:
    run = make_run(
        more=lambda step, time: (
            [SampleMade(time=time, step=step, prompt="def ", text=f"f{step}")] if step % 200 == 0 else []
        ),
        settings="preset: tiny\nmodel:\n  n_layer: 9\n",
    )
    report = read_report(run)
    assert (report.state, report.name, report.figures.steps) == ("finished", "run", 400)
    assert report.figures.tokens_per_second == pytest.approx(2048)
    assert report.figures.best_step == 400
    assert [(s.step, s.text) for s in report.samples] == [(200, "def f200"), (400, "def f400")]
    assert [(c.key, c.preset, c.value) for c in report.changes] == [("model.n_layer", 3, 9)]
    assert report.timeline[0].kind == "started"
    assert report.timeline[-1].kind == "ended"
    assert sum(report.time_parts.values()) == pytest.approx(405, abs=0.1)
    assert {"loss", "lr", "grad_norm", "tok_per_s", "val_loss", "rss_bytes"} <= report.curves.keys()
    assert report.curves["val_loss"].tokens.tolist() == [2048 * step for step in range(40, 401, 40)]


def test_averaged_weights_have_curves_and_are_named_if_they_are_the_best(make_run: MakeRun) -> None:
    run = make_run(
        more=lambda step, time: (
            [replace(validated(step, time, 0.5), trained_loss=0.5 + step / 1000, averaged_loss=0.5)]
            if step % 200 == 0
            else []
        )
    )
    report = read_report(run)
    assert report.curves["val_loss_trained"].values.tolist() == [0.7, 0.9]
    assert report.curves["val_loss_averaged"].values.tolist() == [0.5, 0.5]
    best = next(fact for fact in report.facts if fact.label == "best")
    assert best.note.endswith("at step 200, of the averaged weights (trained weights: 0.7000)")


@pytest.mark.parametrize(
    ("peak", "words"),
    [
        (None, "GFLOP/s while training"),
        (8.192e10, "20.5 GFLOP/s while training: 25% of the machine's 82 in fp32"),
    ],
)
def test_the_throughput_is_compared_with_the_machines_peak(
    make_run: MakeRun, peak: float | None, words: str
) -> None:
    report = read_report(make_run(beginning={"flops_per_token": 1e7, "peak_flops_per_second": peak}))
    [fact] = [fact for fact in report.facts if fact.label == "throughput"]
    assert report.figures.peak_flops_per_second == peak
    assert fact.note.endswith(words)


def test_the_precision_is_named(make_run: MakeRun) -> None:
    report = read_report(make_run(beginning={"precision": "int8"}))
    assert ("machine", "Xeon", "int8, eager, 2 threads") in [(f.label, f.value, f.note) for f in report.facts]


def test_a_run_in_progress_and_one_that_crashed(make_run: MakeRun) -> None:
    run = make_run(reason=None)
    with locked(RunDir(run)):
        assert read_report(run).state == "running"
    crashed = read_report(run)
    assert crashed.state == "crashed"
    assert crashed.findings[0].kind == "crashed"


def test_a_damaged_last_line_costs_that_line_alone(make_run: MakeRun) -> None:
    run = make_run(reason=None)
    whole = read_report(run)
    last = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-3]
    append(run, last[: len(last) // 2])
    damaged = read_report(run)
    assert damaged.figures == replace(whole.figures, damaged_lines=1)
    assert any(fact.label == "damage" for fact in damaged.facts)


def test_steps_undone_by_a_rollback_do_not_count(make_run: MakeRun) -> None:
    def back(step: int, time: float) -> list[RolledBack]:
        if step != 300:
            return []
        return [
            RolledBack(
                time=time,
                step=300,
                to_step=280,
                reason="the loss is nan",
                skipped_batches=(1,),
                count=1,
                limit=3,
            )
        ]

    report = read_report(make_run(more=back))
    assert not set(range(281, 301)) & set(report.curves["loss"].steps.tolist())
    assert report.time_parts["undone"] == pytest.approx(20)
    assert [h.step for h in report.timeline if h.kind == "rolled_back"] == [300]


def test_a_validation_undone_by_a_rollback_is_not_the_best(make_run: MakeRun) -> None:
    run = make_run(val_loss=lambda step: 0.1 if step == 320 else 2.0, reason=None)
    event = RolledBack(
        time=1.7e9 + 500, step=400, to_step=300, reason="a spike", skipped_batches=(), count=1, limit=3
    )
    append(run, to_json(event) + "\n")
    assert read_report(run).figures.best_loss == 2.0


def test_a_resumed_run_says_so_and_joins(make_run: MakeRun) -> None:
    run = make_run(steps=100, reason=None)
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    again = json.loads(text.splitlines()[0]) | {"step": 100, "time": 1.7e9 + 1100, "steps": 500}
    append(run, json.dumps(again) + "\n")
    report = read_report(run)
    assert report.figures.horizon_steps == 500
    assert report.timeline[-1].text == "resumed at step 100, after 16m 40s"


def test_repeated_warnings_are_listed_once(make_run: MakeRun) -> None:
    def warn(step: int, time: float) -> list[Notice]:
        return [Notice(time=time, level="warning", message="the disk is full")] if step % 100 == 0 else []

    (told,) = [h for h in read_report(make_run(more=warn)).timeline if h.kind == "warning"]
    assert told.text == "the disk is full (4 times, the last at step 400)"
    assert told.step == 100


def test_layers_become_curves(make_run: MakeRun) -> None:
    def stats(step: int, time: float) -> list[LayerStats]:
        values = (float(step), 2.0 * step)
        return [
            LayerStats(
                time=time,
                step=step,
                names=("a", "b"),
                weight_norms=values,
                grad_norms=values,
                update_ratios=values,
            )
        ]

    layers = read_report(make_run(more=stats)).layers
    assert set(layers) == {"weight_norm", "grad_norm", "update_ratio"}
    assert layers["grad_norm"]["b"].values.tolist() == [
        2.0 * s for s in layers["grad_norm"]["b"].steps.tolist()
    ]


def test_times_of_checkpoints_are_counted(make_run: MakeRun) -> None:
    def save(step: int, time: float) -> list[CheckpointSaved]:
        return [CheckpointSaved(time=time, step=step, path="p", role="latest", bytes=1, seconds=0.25)]

    report = read_report(make_run(more=save))
    assert report.time_parts["checkpoints"] == pytest.approx(100)
    assert "checkpoints_time" in {finding.kind for finding in report.findings}


def test_a_folder_that_is_not_a_run_says_what_is_missing(tmp_path: Path, make_run: MakeRun) -> None:
    with pytest.raises(DataError, match="is not a cpulm run"):
        read_report(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_report(tmp_path / "nowhere")
    run = make_run()
    (run / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="no metrics yet"):
        read_report(run)
    (run / "metrics.jsonl").write_bytes(b"\x00\xff not a line of a run\n")
    with pytest.raises(DataError, match="holds no event"):
        read_report(run)


def test_damaged_settings_cost_the_settings_alone(make_run: MakeRun) -> None:
    report = read_report(make_run(settings="model: [\n"))
    assert (report.settings, report.changes) == ({}, ())
    assert report.figures.steps == 400


def test_all_of_a_report_is_json(make_run: MakeRun) -> None:
    report = read_report(make_run())
    plain = json.loads(json.dumps(report_as_json(report), allow_nan=False))
    assert plain["curves"]["loss"]["steps"] == report.curves["loss"].steps.tolist()
    assert {finding["kind"] for finding in plain["findings"]} == {f.kind for f in report.findings}


def test_thinning_keeps_ends_and_extremes() -> None:
    count = 100_000
    values = np.random.default_rng(0).standard_normal(count)
    values[[777, 55_555]] = 50.0, -50.0
    steps = np.arange(count, dtype=float)
    thinned = curve(steps, steps, steps, values, 1000)
    assert thinned is not None
    assert len(thinned.values) <= 1000
    assert {0, 777, 55_555, count - 1} <= set(thinned.steps.tolist())
    assert (np.diff(thinned.steps) > 0).all()
    for part in range(10):
        inside = (thinned.steps >= part * 10_000) & (thinned.steps < (part + 1) * 10_000)
        original = values[part * 10_000 : (part + 1) * 10_000]
        assert thinned.values[inside].min() == original.min()
        assert thinned.values[inside].max() == original.max()


def test_blocks_of_the_file_join_without_a_seam(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    whole = read_run_log(run / "metrics.jsonl")
    monkeypatch.setattr(run_log, "_BLOCK_BYTES", 1000)
    parts = read_run_log(run / "metrics.jsonl")
    assert parts.steps["loss"].tolist() == whole.steps["loss"].tolist()
    assert parts.machine_at.tolist() == whole.machine_at.tolist()
    assert [one.at for one in parts.events] == [one.at for one in whole.events]
