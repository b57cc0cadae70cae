"""Each finding on a log that must give it and on one that must not, with its figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cpulm.analysis.build_report import read_report
from cpulm.analysis.report import Finding
from cpulm.analysis.trend import gain
from cpulm.events import Event, GenerationStarted, RolledBack

if TYPE_CHECKING:
    from recorded_runs import MakeRun


def found(run: Path) -> dict[str, Finding]:
    return {finding.kind: finding for finding in read_report(run).findings}


WARNINGS = {
    "overfitting",
    "worsening",
    "learning_rate_too_high",
    "gradients_grow",
    "throttled",
    "slowed",
    "other_programs",
    "crashed",
    "diverged",
}


def test_a_run_without_trouble_has_no_warning(make_run: MakeRun) -> None:
    findings = found(make_run())
    assert not WARNINGS & findings.keys()
    assert not {"batch_too_small", "repeated_data", "spikes"} & findings.keys()


# Still improving


def test_still_improving_holds_what_the_law_would_bring(make_run: MakeRun) -> None:
    """The record follows a power law, so what an hour more brings is known: the range must hold it."""
    finding = found(make_run(steps=1200, every=60, beginning={"train_tokens": 10**9}))["improving"]
    times = 1 + finding.figures["more_seconds"] / 1200
    truth = 6.0 * 1200**-0.35 * (1 - times**-0.35)
    assert finding.figures["gain_low"] < truth < finding.figures["gain_high"]
    assert f"{finding.figures['gain_nats']:.2f}" in finding.text


def test_a_flat_curve_has_little_to_gain(make_run: MakeRun) -> None:
    def flat(step: int) -> float:
        return 2 + 5 * math.exp(-step / 20)

    findings = found(make_run(loss=flat, val_loss=flat))
    assert "improving" not in findings
    assert "converged" in findings


def test_no_loss_below_0_is_promised(make_run: MakeRun) -> None:
    def known_by_heart(step: int) -> float:
        loss: float = 5 * step**-1.8
        return loss

    report = make_run(loss=known_by_heart, val_loss=known_by_heart)
    assert all(finding.figures.get("loss_then", 0.0) >= 0 for finding in found(report).values())


def test_the_decay_of_the_learning_rate_is_not_taken_for_progress(make_run: MakeRun) -> None:
    """In the last half the loss falls by half a nat for the decay alone."""

    def loss(step: int) -> float:
        return falling_slowly(step) - 0.5 * max(0, step - 600) / 600

    def falling_slowly(step: int) -> float:
        return 2.5 + 2.0 * math.pow(step, -0.35)

    finding = found(
        make_run(
            steps=1200,
            every=60,
            loss=loss,
            val_loss=loss,
            lr=lambda step: 1e-3 * min(1.0, (1200 - step) / 600 + 1e-3),
        )
    )
    found_ = finding.get("improving") or finding["converged"]
    assert found_.figures["gain_nats"] < 0.15
    assert found_.figures["gain_high"] > 0.15
    assert "the upper bound counts the decay too" in found_.text


@pytest.mark.parametrize(
    ("schedule", "horizon", "begins"),
    [
        ("wsd", 1200, "Still improving: "),
        ("wsd", 400, "Still improving at the end: "),
        ("constant", 1200, "Still improving at the end: "),
    ],
)
def test_a_decay_that_is_still_ahead_is_mentioned(
    make_run: MakeRun, schedule: str, horizon: int, begins: str
) -> None:
    settings = f"preset: ''\ntrain:\n  schedule: {schedule}\n"
    text = found(make_run(beginning={"steps": horizon}, settings=settings, reason=None))["improving"].text
    assert text.startswith(begins)
    assert ("still to come" in text) == (begins == "Still improving: ")


def test_a_range_has_only_significant_digits(make_run: MakeRun) -> None:
    finding = found(make_run())["improving"]
    wide = finding.figures["gain_high"] - finding.figures["gain_low"] >= 0.05
    assert f"({finding.figures['gain_low']:.{2 if wide else 3}f} to" in finding.text


def test_the_range_narrows_with_more_losses() -> None:
    tokens = np.linspace(1e5, 1e6, 12)
    losses = 1.5 + 6e1 * tokens**-0.35
    wide = gain(tokens[-5:], losses[-5:], 1e6, 1e6, 1e9)
    narrow = gain(tokens, losses, 1e6, 1e6, 1e9)
    assert wide is not None
    assert narrow is not None
    assert narrow.high - narrow.low < wide.high - wide.low


def test_too_few_losses_tell_nothing() -> None:
    assert gain(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), 3.0, 1.0, 10.0) is None


# Overfitting


def bowl(step: int) -> float:
    return 2.0 + 2e-5 * (step - 200) ** 2


def test_overfitting_names_the_step_since_when(make_run: MakeRun) -> None:
    findings = found(make_run(val_loss=bowl))
    finding = findings["overfitting"]
    assert finding.figures["since_step"] == 200
    assert finding.figures["last_loss"] == pytest.approx(2.8)
    assert finding.figures["train_loss_now"] < finding.figures["train_loss_then"]
    assert "improving" not in findings


def test_a_training_loss_that_rises_too_is_not_overfitting(make_run: MakeRun) -> None:
    findings = found(make_run(val_loss=bowl, loss=bowl))
    assert "overfitting" not in findings
    assert findings["worsening"].figures["since_step"] == 200


def test_a_validation_loss_that_jitters_is_not_overfitting(make_run: MakeRun) -> None:
    def jitter(step: int) -> float:
        return 2.0 + (0.03 if step // 40 % 2 else 0.0)

    assert not {"overfitting", "worsening"} & found(make_run(val_loss=jitter)).keys()


# Learning rate


def spiky(*begins: int) -> Any:
    return lambda step: falling(step) + 2.0 * any(0 <= step - begin < 10 for begin in begins)


def falling(step: int) -> float:
    return 1.5 + 6.0 * math.pow(step, -0.35)


def test_spikes_say_that_the_learning_rate_is_too_high(make_run: MakeRun) -> None:
    finding = found(make_run(loss=spiky(150, 250, 350)))["learning_rate_too_high"]
    assert finding.figures["spikes"] == 3
    assert 150 <= finding.figures["first_step"] <= 156
    assert finding.figures["highest_nats"] == pytest.approx(2.0, abs=0.2)


def test_one_spike_that_came_back_is_a_note(make_run: MakeRun) -> None:
    findings = found(make_run(loss=spiky(250)))
    assert "learning_rate_too_high" not in findings
    assert findings["spikes"].weight == "note"


def test_single_unusual_batches_are_not_spikes(make_run: MakeRun) -> None:
    findings = found(make_run(loss=lambda step: falling(step) + 1.5 * (step % 60 == 0)))
    assert not {"spikes", "learning_rate_too_high"} & findings.keys()


def test_going_back_to_a_checkpoint_says_so_too(make_run: MakeRun) -> None:
    def back(step: int, time: float) -> list[RolledBack]:
        if step != 200:
            return []
        return [
            RolledBack(
                time=time,
                step=200,
                to_step=190,
                reason="the gradient norm is inf",
                skipped_batches=(1,),
                count=1,
                limit=3,
            )
        ]

    assert found(make_run(more=back))["learning_rate_too_high"].figures["rollbacks"] == 1


def test_nothing_learned_before_the_decay_is_too_high_a_rate(make_run: MakeRun) -> None:
    def stuck(step: int) -> float:
        return 3.0 - max(0, step - 300) / 100

    findings = found(make_run(loss=stuck, lr=lambda step: 1e-3 * min(1.0, (400 - step) / 100 + 1e-3)))
    assert findings["learning_rate_too_high"].figures["loss_end"] < 2.5


def test_growing_gradients_are_reported(make_run: MakeRun) -> None:
    findings = found(make_run(grad_norm=lambda step: 1 + (step / 60) ** 2))
    assert findings["gradients_grow"].figures["grad_norm_late"] > 8
    assert "gradients_grow" not in found(make_run("calm", grad_norm=lambda step: 1 + step / 1000))


# Batch and data


def test_a_loss_that_jumps_from_step_to_step_is_a_small_batch(make_run: MakeRun) -> None:
    finding = found(make_run(noise=0.5))["batch_too_small"]
    assert finding.figures["noise_nats"] == pytest.approx(0.5, rel=0.25)
    assert "--set train.grad_accum_steps=2" in finding.text
    assert "batch_too_small" not in found(make_run("usual", noise=0.2))


@pytest.mark.parametrize(("train_tokens", "kind"), [(4_000_000, "data_seen"), (50_000, "repeated_data")])
def test_how_often_the_text_was_seen(make_run: MakeRun, train_tokens: int, kind: str) -> None:
    finding = found(make_run(beginning={"train_tokens": train_tokens}))[kind]
    assert finding.figures["epochs"] == pytest.approx(400 * 2048 / train_tokens)


# The machine


def slow_late(step: int) -> float:
    return 1.0 if step <= 240 else 1.6


def test_a_clock_that_falls_is_throttling(make_run: MakeRun) -> None:
    run = make_run(
        step_seconds=slow_late,
        machine=lambda step: (
            {"cpu_mhz": 3900.0, "cpu_temperature": 70.0}
            if step <= 240
            else {"cpu_mhz": 2400.0, "cpu_temperature": 97.0}
        ),
    )
    finding = found(run)["throttled"]
    assert finding.figures["since"] == pytest.approx(1_700_000_000 + 240, abs=15)
    assert finding.figures["slower_times"] == pytest.approx(1.6, rel=0.05)
    assert "3,900 to 2,400 MHz" in finding.text
    assert "97 °C" in finding.text
    assert finding.text.startswith("The machine throttled from ")


def test_other_programs_are_not_throttling(make_run: MakeRun) -> None:
    run = make_run(
        step_seconds=slow_late, machine=lambda step: {"process_cpu_percent": 97.0 if step <= 240 else 60.0}
    )
    findings = found(run)
    assert "throttled" not in findings
    assert findings["other_programs"].figures["others_percent"] == pytest.approx(39, abs=1)


def test_a_slow_time_without_a_reason_says_that(make_run: MakeRun) -> None:
    findings = found(make_run(step_seconds=lambda step: 1.5 if 100 < step <= 200 else 1.0))
    assert "does not show why" in findings["slowed"].text
    assert " to " in findings["slowed"].text.partition(":")[2]


def test_single_slow_steps_are_not_a_slow_machine(make_run: MakeRun) -> None:
    findings = found(make_run(step_seconds=lambda step: 8.0 if step % 20 == 0 else 1.0))
    assert not {"slowed", "throttled", "other_programs"} & findings.keys()


# The end


def test_a_run_that_diverged_says_where(make_run: MakeRun) -> None:
    assert found(make_run(reason="diverged"))["diverged"].figures["step"] == 400


def test_warnings_come_first(make_run: MakeRun) -> None:
    weights = [finding.weight for finding in read_report(make_run(val_loss=bowl, noise=0.5)).findings]
    assert weights == sorted(weights, key=["warning", "note", "good"].index)
    assert len(set(weights)) == 3


def test_time_beside_training_is_reported_if_it_is_long(make_run: MakeRun) -> None:
    findings = found(make_run(every=2))
    assert findings["validation_time"].figures["share"] == pytest.approx(0.2, abs=0.02)
    assert "validation_time" not in found(make_run("seldom"))


def test_the_time_parts_of_a_very_short_run_are_not_a_finding(make_run: MakeRun) -> None:
    findings = found(make_run(every=2, steps=40))
    assert not [kind for kind in findings if kind.endswith("_time")]


# Generations


def two_generations(step: int) -> float:
    """The loss of new weights after 400 of 800 steps, which then learn as the first ones did."""
    return falling(step if step <= 400 else step - 400) - 0.1 * (step > 400)


def border(step: int, time: float) -> list[Event]:
    if step != 400:
        return []
    return [
        GenerationStarted(
            time=time,
            step=400,
            generation=2,
            generations=2,
            seed=2,
            teacher_step=400,
            teacher_loss=falling(400),
        )
    ]


def test_new_weights_after_a_border_are_neither_overfitting_nor_trouble(make_run: MakeRun) -> None:
    """Of the whole record, the losses after the border would be a rise from the minimum before it."""
    run = make_run(
        steps=520, loss=two_generations, val_loss=two_generations, more=border, beginning={"generations": 2}
    )
    assert not WARNINGS & found(run).keys()
    without = make_run("without", steps=520, loss=two_generations, val_loss=two_generations)
    assert "worsening" in found(without)


def test_a_generation_alone_decides_what_more_time_would_bring(make_run: MakeRun) -> None:
    more = {"every": 20, "beginning": {"train_tokens": 10**9}}
    alone = found(make_run("alone", **more))["improving"]
    second = found(
        make_run("two", steps=800, loss=two_generations, val_loss=two_generations, more=border, **more)
    )["improving"]
    assert second.figures["gain_nats"] == pytest.approx(alone.figures["gain_nats"], abs=0.03)
    assert second.figures["more_seconds"] == pytest.approx(alone.figures["more_seconds"])


def test_the_report_names_the_generations(make_run: MakeRun) -> None:
    report = read_report(make_run(steps=800, loss=two_generations, val_loss=two_generations, more=border))
    assert [entry.step for entry in report.timeline if entry.kind == "generation"] == [400]
