"""Compares runs: order, differing settings and their effects, and losses that are not comparable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cpulm.analysis.build_report import read_report
from cpulm.analysis.compare import compare, x_values

if TYPE_CHECKING:
    from recorded_runs import MakeRun


def run_of(make_run: MakeRun, name: str, loss: float, lr: float, seed: int = 0) -> Path:
    settings = f"preset: ''\ntrain:\n  lr: {lr}\n  seed: {seed}\n"
    return make_run(name, val_loss=lambda step: loss + 1 / step, settings=settings)


def test_best_first_with_what_differs_and_what_it_did(make_run: MakeRun) -> None:
    runs = [
        run_of(make_run, "a", 2.2, 0.01, 0),
        run_of(make_run, "b", 2.0, 0.02, 0),
        run_of(make_run, "c", 2.4, 0.01, 1),
        run_of(make_run, "d", 2.1, 0.02, 1),
    ]
    found = compare([read_report(run) for run in runs])
    assert [row.name for row in found.rows] == ["b", "d", "a", "c"]
    assert found.keys == ("train.lr", "train.seed")
    assert found.rows[0].behind == 0
    assert found.rows[0].values == {"train.lr": 0.02, "train.seed": 0}
    by_lr = [effect for effect in found.effects if effect.key == "train.lr"]
    assert [(effect.value, effect.runs) for effect in by_lr] == [(0.02, 2), (0.01, 2)]
    scores = {row.name: row.bits_per_byte or 0 for row in found.rows}
    assert by_lr[0].mean_bits_per_byte == pytest.approx((scores["b"] + scores["d"]) / 2)
    assert (found.measure, found.notes) == ("loss", ())


def test_settings_that_leave_the_weights_alone_have_done_nothing(make_run: MakeRun) -> None:
    runs = [
        make_run(name, settings=f"preset: ''\ntrain:\n  lr: {lr}\neval:\n  every: {every}\n")
        for name, lr, every in (("a", 0.01, 40), ("b", 0.02, 50))
    ]
    found = compare([read_report(run) for run in runs])
    assert found.keys == ("train.lr", "eval.every")
    assert {effect.key for effect in found.effects} == {"train.lr"}


def test_runs_of_different_tokenizers_are_compared_by_bits_per_byte(make_run: MakeRun) -> None:
    """The byte tokenizer has the lower loss per token, and is worse."""
    from dataclasses import replace

    small, large = (
        read_report(run_of(make_run, "byte", 1.5, 0.01)),
        read_report(run_of(make_run, "bpe", 3.0, 0.01)),
    )
    figures = replace(large.figures, best_bits_per_byte=0.9, vocab_size=4096)
    found = compare([small, replace(large, figures=figures)])
    assert [row.name for row in found.rows] == ["bpe", "byte"]
    assert found.measure == "bits_per_byte"
    assert "different tokenizers" in found.notes[0]


def test_runs_without_a_validation_come_last(make_run: MakeRun) -> None:
    blind = make_run("blind", steps=30)
    found = compare([read_report(blind), read_report(run_of(make_run, "seen", 2.0, 0.01))])
    assert [row.name for row in found.rows] == ["seen", "blind"]
    assert found.rows[1].behind is None
    assert any("Not validated yet: blind" in note for note in found.notes)


def test_different_texts_are_reported(make_run: MakeRun) -> None:
    runs = [make_run(name, settings=f"data:\n  source: [{name}.txt]\n") for name in ("one", "two")]
    assert any("different texts" in note for note in compare([read_report(run) for run in runs]).notes)


def test_different_precisions_and_machines_are_reported(make_run: MakeRun) -> None:
    runs = [
        make_run("one", beginning={"precision": "fp32"}),
        make_run("two", beginning={"precision": "int8", "device_name": "Ryzen"}),
    ]
    notes = compare([read_report(run) for run in runs]).notes
    assert any(note.endswith("fp32: one; int8: two.") for note in notes)
    assert any("different machines" in note for note in notes)
    assert compare([read_report(run) for run in (runs[0], make_run("three"))]).notes == ()


def test_two_runs_of_one_name_are_distinguished_by_their_paths(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    make_run("x/run")
    found = compare([read_report(make_run("run")), read_report(tmp_path / "x" / "run")])
    assert len({row.name for row in found.rows}) == 2


def test_curves_stand_along_four_axes(make_run: MakeRun) -> None:
    report = read_report(make_run())
    curve = report.curves["val_loss"]
    last = []
    for by in ("steps", "tokens", "time", "flops"):
        x = x_values(report, curve, by)
        assert x is not None
        last.append(float(x[-1]))
    assert last == pytest.approx([400, 400 * 2048, 400, 400 * 2048 * 1e4])


def test_runs_on_different_texts_are_ranked_apart_and_have_no_effects(make_run: MakeRun) -> None:
    def run(name: str, loss: float, lr: float, source: str) -> Path:
        settings = f"preset: ''\ntrain:\n  lr: {lr}\ndata:\n  source: [{source}]\n  val_source: []\n"
        return make_run(name, val_loss=lambda step: loss + 1 / step, settings=settings)

    runs = [
        run("easy", 1.0, 0.01, "rhymes"),
        run("hard", 3.0, 0.02, "proofs"),
        run("easier", 0.9, 0.03, "rhymes"),
        run("harder", 3.1, 0.04, "proofs"),
    ]
    found = compare([read_report(run) for run in runs])
    assert [(row.name, row.val_text) for row in found.rows] == [
        ("easier", 1),
        ("easy", 1),
        ("hard", 2),
        ("harder", 2),
    ]
    assert [row.behind == 0 for row in found.rows] == [True, False, True, False]
    assert {effect.key for effect in found.effects} == {"train.lr"}  # among runs on one text


def test_an_effect_needs_runs_that_differ_in_that_setting_alone(make_run: MakeRun) -> None:
    def run(name: str, loss: float, lr: float, seed: int, batch: int) -> Path:
        settings = f"preset: ''\ntrain:\n  lr: {lr}\n  seed: {seed}\n  micro_batch_size: {batch}\n"
        return make_run(name, val_loss=lambda step: loss + 1 / step, settings=settings)

    runs = [run("a", 2.0, 0.01, 0, 8), run("b", 2.1, 0.01, 1, 16), run("c", 2.2, 0.02, 2, 8)]
    assert compare([read_report(run) for run in runs]).effects == ()
    alone = compare([read_report(run) for run in [*runs, run("d", 2.3, 0.03, 2, 8)]]).effects
    assert [(effect.value, effect.runs) for effect in alone] == [(0.02, 1), (0.03, 1)]
