"""Schedules as tables: progress of the run -> fraction of the peak learning rate."""

from __future__ import annotations

import pytest

from cpulm.optim.schedule import ScheduleKind, lr_scale

PROGRESS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


@pytest.mark.parametrize(
    ("kind", "floor", "expected"),
    [
        ("constant", 0.1, (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
        ("linear", 0.0, (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)),
        ("linear", 0.2, (1.0, 0.8, 0.6, 0.4, 0.28, 0.2)),
        ("cosine", 0.0, (1.0, 0.853553, 0.5, 0.146447, 0.024472, 0.0)),
        ("cosine", 0.1, (1.0, 0.868198, 0.55, 0.231802, 0.122025, 0.1)),
        ("wsd", 0.0, (1.0, 1.0, 1.0, 0.625, 0.25, 0.0)),
        ("wsd", 0.5, (1.0, 1.0, 1.0, 0.8125, 0.625, 0.5)),
    ],
)
def test_shape_over_the_run(kind: ScheduleKind, floor: float, expected: tuple[float, ...]) -> None:
    found = [lr_scale(kind, 99, p, warmup_steps=10, decay_fraction=0.4, min_lr_ratio=floor) for p in PROGRESS]
    assert found == pytest.approx(expected, abs=1e-6)


def test_decay_fraction_places_the_bend() -> None:
    late = [lr_scale("wsd", 999, p, 0, decay_fraction=0.1, min_lr_ratio=0.0) for p in PROGRESS]
    whole = [lr_scale("wsd", 999, p, 0, decay_fraction=1.0, min_lr_ratio=0.0) for p in PROGRESS]
    assert late == pytest.approx([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    assert whole == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.1, 0.0])


def test_warmup_rises_by_equal_steps_and_never_gives_zero() -> None:
    found = [lr_scale("constant", step, 0.0, 4, 0.5, 0.0) for step in range(6)]
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_without_warmup_the_first_step_is_at_the_peak() -> None:
    assert lr_scale("cosine", 0, 0.0, 0, 0.5, 0.0) == 1.0


def test_warmup_multiplies_the_shape() -> None:
    assert lr_scale("linear", 1, 0.5, 4, 0.5, 0.0) == pytest.approx(0.25)


@pytest.mark.parametrize(("outside", "inside"), [(1.7, 1.0), (-0.3, 0.0)])
def test_progress_outside_the_run_counts_as_its_end(outside: float, inside: float) -> None:
    for kind in ("cosine", "wsd", "linear", "constant"):
        assert lr_scale(kind, 9, outside, 0, 0.5, 0.1) == lr_scale(kind, 9, inside, 0, 0.5, 0.1)
