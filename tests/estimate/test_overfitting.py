"""When validation losses have risen, and how often a run sees its text."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime

import pytest

from cpulm.estimate.memory import Arithmetic
from cpulm.estimate.overfitting import risen_since
from cpulm.estimate.recipe import regularization
from cpulm.estimate.repeated_text import describe_passes, passes_warning
from cpulm.estimate.requirements import estimate_requirements, expected_passes
from cpulm.settings.resolve_settings import resolve


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([5.0, 4.6, 4.5, 4.7], None),  # one worse validation may be noise
        ([5.0, 4.6, 4.5, 4.7, 5.0, 5.4], 2),
        ([5.0, 4.6, 4.5, 4.4, 4.35, 4.33], None),
        ([5.0, 4.5, 4.8], None),  # too few to know the noise
        ([4.6, 4.2, 4.7, 4.3, 4.6, 4.5, 4.8, 4.4], None),
    ],
)
def test_a_rise_is_more_than_noise(losses: list[float], best: int | None) -> None:
    assert risen_since(losses) == best


@pytest.mark.parametrize(
    ("passes", "text"),
    [
        (0.33, "33% of the text once"),
        (0.0042, "0.42% of the text once"),
        (1.0, "1.0 passes over the text"),
        (848.2, "848 passes over the text"),
    ],
)
def test_passes_in_words(passes: float, text: str) -> None:
    assert describe_passes(passes) == text


def test_more_passes_than_the_text_bears_are_a_warning_with_their_number() -> None:
    usual, characters = resolve(), resolve(assignments=["data.tokenizer=char", "data.vocab_size=null"])
    assert passes_warning(4.0, 301_000, 4_800_000, usual) is None
    assert passes_warning(16.0, 301_000, 100_000, usual) is None  # a small model repeats more of its text
    suitable = regularization(848.0, 4_800_000, 301_000, splits=True)
    advice = f"--dropout {suitable.dropout:g} --set train.weight_decay={suitable.weight_decay:g} --lr 0.00078"
    for settings, more in ((usual, f" --set train.bpe_dropout={suitable.bpe_dropout:g}"), (characters, "")):
        warning = passes_warning(848.0, 301_000, 4_800_000, settings)
        assert warning is not None
        assert "848 passes over the text of 301 K tokens" in warning
        assert warning.endswith(advice + more)
    dropped = [f"model.dropout={suitable.dropout}", "train.lr=0.001"]
    assert passes_warning(848.0, 301_000, 4_800_000, resolve(assignments=dropped)) is None
    for optimizer, is_too_fast in (("muon", True), ("adamw", False)):  # which has one rate for all weights
        fast = resolve(assignments=[*dropped, "train.lr=0.01", f"train.optimizer={optimizer}"])
        assert (passes_warning(848.0, 301_000, 4_800_000, fast) is not None) == is_too_fast


def test_passes_of_a_time_follow_from_the_measured_step() -> None:
    def passes(horizon: str, trained: int = 0, spent: float = 0.0) -> float:
        settings = resolve(preset="tiny", assignments=[horizon])
        plan = estimate_requirements(settings, 512, 100_000, Arithmetic())
        plan = replace(plan, step_seconds=settings.tokens_per_step / 10_000)  # ten thousand tokens a second
        found = expected_passes(plan, settings.train, trained, spent_seconds=spent)
        assert found is not None
        return found

    in_an_hour = datetime.fromtimestamp(time.time() + 3600).astimezone().isoformat()
    assert passes("train.max_time=1h") == pytest.approx(360)
    assert passes("train.max_time=1h", spent=1800.0) == pytest.approx(180)
    assert passes(f"train.until={in_an_hour}", 1_000_000) == pytest.approx(370, rel=0.01)
    assert passes("train.epochs=3", spent=1800.0) == pytest.approx(3, rel=0.1)
