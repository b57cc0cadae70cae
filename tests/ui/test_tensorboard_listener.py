"""The data that TensorBoard reads back."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpulm.errors import CpulmError
from cpulm.events import Event, LayerStats, MachineSampled, RunStarted, SampleMade, StepDone, Validated
from cpulm.ui.tensorboard import tensorboard_listener


def test_curves_and_samples_are_read_back(tmp_path: Path, events: list[Event]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tensorboard_listener(tmp_path, "train:\n  lr: 0.002\n") as listener:
        for event in events:
            listener(event)
        last = next(event for event in reversed(events) if isinstance(event, Validated))
        listener(replace(last, step=99, trained_loss=2.5, averaged_loss=2.25))
        listener(
            LayerStats(
                time=events[-1].time,
                step=100,
                names=("embedding", "head"),
                weight_norms=(4.0, 5.0),
                grad_norms=(0.5, 0.25),
                update_ratios=(1e-3, 2e-3),
            )
        )
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
    assert values("loss/validation") == pytest.approx([event.loss for event in [*validations, last]])
    assert (values("loss/validation_trained"), values("loss/validation_averaged")) == ([2.5], [2.25])
    bits = [event.bits_per_byte for event in [*validations, last]]
    assert values("validation/bits_per_byte") == pytest.approx(bits)
    samples = [event for event in events if isinstance(event, SampleMade)]
    texts = reader.Tensors("sample/text_summary")
    assert [tensor.step for tensor in texts] == [event.step for event in samples]
    assert "def read(path):" in texts[0].tensor_proto.string_val[0].decode()
    machine = [event for event in events if isinstance(event, MachineSampled)]
    assert values("machine/cpu_percent") == pytest.approx([event.cpu_percent for event in machine])
    assert values("machine/process_mib") == pytest.approx([event.process_bytes / 2**20 for event in machine])
    assert values("update_ratio/head") == pytest.approx([2e-3])
    assert values("weight_norm/embedding") == pytest.approx([4.0])
    (settings,) = reader.Tensors("settings/text_summary")
    assert settings.tensor_proto.string_val[0].decode() == "    train:\n      lr: 0.002\n    "


def test_tensorboards_own_server_shows_curves_samples_and_settings(
    tmp_path: Path, events: list[Event]
) -> None:
    """What its pages ask for, asked of a real TensorBoard over HTTP."""
    program = pytest.importorskip("tensorboard.program")
    with tensorboard_listener(tmp_path / "tiny-1", "train:\n  lr: 0.002\n") as listener:
        for event in events:
            listener(event)
    server = program.TensorBoard()
    server.configure(logdir=str(tmp_path), host="127.0.0.1", port=0, load_fast="false")
    address = server.launch().rstrip("/")

    def ask(path: str) -> Any:
        with urllib.request.urlopen(address + path, timeout=10) as answer:
            return json.loads(answer.read())

    for _ in range(200):
        if ask("/data/runs") == ["tiny-1"] and ask("/data/plugin/text/tags"):
            break
        time.sleep(0.05)
    tags = ask("/data/plugin/scalars/tags")["tiny-1"]
    assert {"loss/train", "loss/validation", "train/learning_rate", "machine/cpu_percent"} <= set(tags)
    points = ask("/data/plugin/scalars/scalars?run=tiny-1&tag=loss/train")
    assert points[-1][1:] == pytest.approx([100, last_loss(events)])
    assert set(ask("/data/plugin/text/tags")["tiny-1"]) == {"sample/text_summary", "settings/text_summary"}
    (settings,) = ask("/data/plugin/text/text?run=tiny-1&tag=settings/text_summary")
    assert "lr: 0.002" in settings["text"]


def last_loss(events: list[Event]) -> float:
    return [event.loss for event in events if isinstance(event, StepDone)][-1]


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
