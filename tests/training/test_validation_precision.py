"""A checkpoint has one validation loss: a run's own and that of ``cpulm evaluate``, in every precision."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import of, settings_for, train

from cpulm.evaluation.evaluate import EvaluationRequest, evaluate_checkpoints
from cpulm.events import RunStarted, Validated
from cpulm.settings import RuntimeSettings
from cpulm.system.machine import read_machine
from cpulm.system.precisions import has_fast_int8

needs_int8 = pytest.mark.skipif(
    not has_fast_int8(read_machine().instruction_sets), reason="no int8 products on this CPU"
)


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("int8", marks=needs_int8)])
def test_a_run_and_evaluate_give_the_same_loss(tmp_path: Path, precision: str, kernels: str) -> None:
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat; the rat saw the cat and ran.\n" * 60)
    settings = settings_for(
        text,
        "model.n_embd=32",
        "model.dropout=0",
        "train.muon_lr=0.2",
        "train.lr=0.05",
        f"runtime.precision={precision}",
        f"runtime.kernels={kernels}",
    )
    events, _ = train(settings, tmp_path / "run")
    assert of(RunStarted, events)[0].precision == precision
    validated = of(Validated, events)[-1]
    as_evaluate = RuntimeSettings(precision="fp32", threads=1, device="cpu")
    latest = [tmp_path / "run" / "latest.pt"]
    comparison = evaluate_checkpoints(latest, EvaluationRequest(), as_evaluate, show=lambda _: None)
    text_score = comparison.scores[0].text
    assert text_score is not None
    assert text_score.loss.value == pytest.approx(validated.loss, rel=1e-6)
    assert text_score.bits_per_byte.value == pytest.approx(validated.bits_per_byte, rel=1e-6)
