"""What the chart shows: validations set its frame, and what lies above it is marked with its value."""

from __future__ import annotations

from cpulm.ui.canvas import UNICODE
from cpulm.ui.chart import chart, frame
from cpulm.ui.curve import Bucket


def point(step: int, loss: float) -> Bucket:
    return Bucket(step, step, loss, loss, loss, 1)


FALLING = [point(step, 4.0 + 4.0 / (1 + step / 10)) for step in range(0, 1000, 2)]


def drawn(losses: list[Bucket], validations: list[Bucket]) -> str:
    lines = chart(losses, validations, 70, 16, UNICODE)
    return "\n".join("".join(segment.text for segment in line) for line in lines)


def test_validations_that_rise_are_inside_the_frame() -> None:
    rising = [point(100 * number, 4.2 + 0.3 * number) for number in range(1, 10)]
    view = frame(FALLING, rising)
    heights = [view.up(bucket.mean) for bucket in rising]
    assert heights == sorted(set(heights))  # one above the other, none flattened at the edge
    assert sum(UNICODE.validation in line for line in drawn(FALLING, rising).splitlines()) > 5


def test_a_peak_above_the_frame_is_marked_with_its_value() -> None:
    peaked = [point(b.first, 23.4) if b.first == 600 else b for b in FALLING]
    assert f"{UNICODE.up}23.40" in drawn(peaked, [])
    assert f"{UNICODE.up}23.40" not in drawn(FALLING, [])
