"""A run beside the measured law: normal, better, worse, or nothing to say; and its card."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from cpulm.analysis.build_report import read_report
from cpulm.analysis.card import card_of
from cpulm.analysis.report import Standing
from cpulm.analysis.standing import standing_findings
from cpulm.errors import DataError
from cpulm.estimate.learning_law import Expectation, TextCurve, measured_law
from cpulm.ui.page.card_picture import card_svg, write_card

if TYPE_CHECKING:
    from pathlib import Path

    from recorded_runs import MakeRun

TEXT, STEPS = TextCurve(2.3, 0.06), 400


def standing_of(make_run: MakeRun, name: str, factor: float, **more: Any) -> Any:
    beginning = {
        "text_level": TEXT.level,
        "text_slope": TEXT.slope,
        "params_non_embedding": 10**6,
        **more.pop("beginning", {}),
    }
    run = make_run(name, steps=STEPS, val_loss=lambda _: factor, beginning=beginning, **more)
    return read_report(run)


def test_a_loss_is_held_against_what_the_law_expects(make_run: MakeRun) -> None:
    report = standing_of(make_run, "first", 2.0)
    figures, found, law = report.figures, report.standing, measured_law()
    bytes_per_token = figures.best_loss / math.log(2) / figures.best_bits_per_byte
    unique = figures.train_tokens * bytes_per_token
    assert found.expected == law.expected(10**6, figures.tokens * bytes_per_token, unique, TEXT)
    assert found.loss_then < found.loss
    finding = next(one for one in report.findings if one.kind == "standing")
    inside = found.expected.low <= found.loss <= found.expected.high
    assert finding.text.startswith("Normal") == inside
    assert f"{found.expected.low:.2f} to {found.expected.high:.2f}" in finding.text


@pytest.mark.parametrize(("loss", "word"), [(1.5, "Better"), (2.0, "Normal"), (2.5, "Worse")])
def test_a_loss_beside_the_span_is_better_or_worse(loss: float, word: str) -> None:
    beside = Standing(loss, Expectation(2.0, 1.8, 2.2), 3600.0, loss - 0.1)
    (finding,) = standing_findings(beside, 600.0)
    assert finding.text.startswith(word)
    assert (finding.weight == "note") == (word == "Worse")
    assert ("Another hour would bring" in finding.text) == (word != "Worse")


@pytest.mark.parametrize("damage", [{"text_level": 0.0}, {"text_level": -1.0}, {"text_slope": 1e9}])
def test_nothing_is_said_of_a_text_that_cannot_be(make_run: MakeRun, damage: dict[str, float]) -> None:
    assert standing_of(make_run, "damaged", 2.0, beginning=damage).standing is None


def test_nothing_is_said_of_a_run_that_has_not_ended_or_an_old_log(make_run: MakeRun) -> None:
    assert standing_of(make_run, "running", 2.0, reason=None).standing is None
    assert standing_of(make_run, "stopped", 2.0, reason="stopped").standing is None
    assert standing_of(make_run, "old", 2.0, beginning={"text_level": None}).standing is None


def test_a_card_has_machine_time_tokens_and_bits_per_byte(make_run: MakeRun, tmp_path: Path) -> None:
    report = standing_of(make_run, "night", 2.0)
    card = card_of(report)
    text = card.text()
    assert f"{report.figures.best_bits_per_byte:.4f} bits per byte" in text
    for label in ("machine", "time", "text", "model", "loss", "usual", "made with"):
        assert f"\n{label}" in text
    assert all(value.replace("&", "&amp;") in card_svg(card) for _, value in card.facts)
    write_card(tmp_path / "card.png", card)
    assert (tmp_path / "card.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(DataError, match="no validation yet"):
        card_of(read_report(make_run("young", every=1000)))
