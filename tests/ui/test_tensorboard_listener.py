"""What TensorBoard reads back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cpulm.errors import CpulmError
from cpulm.events import Event, RunStarted, SampleMade, StepDone, Validated
from cpulm.ui.tensorboard import tensorboard_listener


def test_curves_and_samples_are_read_back(tmp_path: Path, events: list[Event]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tensorboard_listener(tmp_path) as listener:
        for event in events:
            listener(event)
    reader = accumulator.EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    steps = [event for event in events if isinstance(event, StepDone)]
    losses = reader.Scalars("loss/train")
    assert [scalar.step for scalar in losses] == [event.step for event in steps]
    assert [scalar.value for scalar in losses] == pytest.approx([event.loss for event in steps])
    assert [scalar.wall_time for scalar in losses] == pytest.approx([event.time for event in steps])

    def values(tag: str) -> list[float]:
        return [scalar.value for scalar in reader.Scalars(tag)]

    assert values("train/learning_rate") == pytest.approx([2e-3] * 100)
    assert values("train/gradient_norm") == pytest.approx([0.8125] * 100)
    assert values("train/tokens_per_second") == pytest.approx([8192] * 100)
    validations = [event for event in events if isinstance(event, Validated)]
    assert values("loss/validation") == pytest.approx([event.loss for event in validations])
    bits = [event.bits_per_byte for event in validations]
    assert values("validation/bits_per_byte") == pytest.approx(bits)
    samples = [event for event in events if isinstance(event, SampleMade)]
    texts = reader.Tensors("sample/text_summary")
    assert [tensor.step for tensor in texts] == [event.step for event in samples]
    assert "def read(path):" in texts[0].tensor_proto.string_val[0].decode()


def test_a_resumed_run_replaces_what_came_after_its_step(
    tmp_path: Path, started: Callable[..., RunStarted], step: Callable[..., StepDone]
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last in ((1, 30), (21, 40)):
        with tensorboard_listener(tmp_path) as listener:
            listener(started(step=first - 1))
            for number in range(first, last + 1):
                listener(step(number, float(last)))
    reader = accumulator.EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    reader.Reload()
    losses = reader.Scalars("loss/train")
    assert [scalar.step for scalar in losses] == list(range(1, 41))
    assert [scalar.value for scalar in losses] == [30.0] * 20 + [40.0] * 20


def test_without_the_package_the_hint_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(CpulmError) as raised, tensorboard_listener(tmp_path):
        pass
    assert raised.value.hint == "pip install 'cpulm[tensorboard]'"
